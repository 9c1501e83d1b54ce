"""Several processes that write one checkpoint: all of it appears, or nothing does.

The first process makes the folder and gives it its name at the end; in between each writes its own
parts of the files (`shared_files.py`). After every stage all hear whether it went well everywhere.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from erniekit.checkpoint.atomic import explain, write_folder
from erniekit.checkpoint.header import Spec
from erniekit.checkpoint.shared_files import Part, plan_files
from erniekit.errors import CheckpointError

# Place of a tensor among all tensors, and what it is as a whole.
Placed = tuple[int, Spec]


class Crew(Protocol):
    """The processes of a run, where they write together."""

    @property
    def is_first(self) -> bool: ...

    def gather(self, value: Any) -> list[Any]:
        """The value (of plain Python) that each process gave, in their order; waits for the last one."""


@dataclass(frozen=True)
class SharedTensors:
    """Tensors of which this process holds parts.

    Args:
        basename: of their files. metadata: of their headers.
        specs: whole tensors of which there are parts here, with their places in the order of all.
        parts: what this process writes; a tensor that others hold too is written by one of them.
    """

    basename: str
    metadata: dict[str, str]
    specs: Sequence[Placed]
    parts: Callable[[], Iterable[Part]]

    def held(self) -> "SharedTensors":
        """With copies of the parts as they are now."""
        parts = [Part(part.name, part.start, part.array.copy()) for part in self.parts()]
        return SharedTensors(self.basename, self.metadata, self.specs, lambda: parts)


def write_together(
    path: Path,
    crew: Crew,
    tensors: Sequence[SharedTensors],
    finish: Callable[[Path], None],
    *,
    max_shard_bytes: int,
) -> None:
    """Write a folder; called by every process of the crew.

    Args:
        finish: writes what lies beside the tensors, in the first process, when all of them are there.

    Raises:
        CheckpointError: any process could not write; nothing is left behind, and all raise.
    """
    with ExitStack() as stack:
        made: list[Path] = []

        def make() -> None:
            made.append(stack.enter_context(write_folder(path, overwrite=True)))

        def complete() -> None:
            finish(folder)
            stack.close()  # gives the folder its name

        _agree(crew, path, make if crew.is_first else None)
        folder = Path(crew.gather(str(made[0]) if made else "")[0])
        plans = []
        for each in tensors:
            placed = {spec[0]: (place, spec) for found in crew.gather(each.specs) for place, spec in found}
            specs = [spec for _, spec in sorted(placed.values())]
            plans.append(
                plan_files(
                    specs, max_shard_bytes=max_shard_bytes, metadata=each.metadata, basename=each.basename
                )
            )

        def lay_out() -> None:
            for plan in plans:
                plan.lay_out(folder)

        def write() -> None:
            for plan, each in zip(plans, tensors, strict=True):
                plan.write(folder, each.parts())

        _agree(crew, path, lay_out if crew.is_first else None)
        _agree(crew, path, write)
        _agree(crew, path, complete if crew.is_first else None)


def _agree(crew: Crew, path: Path, work: Callable[[], object] | None) -> None:
    """Do one's part of a stage; raises in all processes when it failed in one."""
    problem = None
    try:
        if work is not None:
            work()
    except OSError as error:
        problem = str(explain(error, path))
    except CheckpointError as error:
        problem = str(error)
    except Exception as error:  # ours; the others must not wait for what does not come
        crew.gather(f"{path}: {type(error).__name__}: {error}")
        raise
    problems = [found for found in crew.gather(problem) if found is not None]
    if problems:
        raise CheckpointError(problems[0])
