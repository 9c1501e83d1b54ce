"""The checkpoints of one run.

`checkpoint-<step>/` is a Hugging Face model folder with what a run needs to go on: optimizer
state, `trainer_state.json`, a manifest. Two small files in the run's folder name the `latest`
and the `best`. A checkpoint is deleted only after a newer one is complete, and never when it is
the best or the latest. Newer means written later, by the number in the manifest: a run that went
back to step 20 and on to 30 has its newest checkpoint there, whatever an older attempt left at 40.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.checkpoint.atomic import (
    clean_leftovers,
    discard_folder,
    explain,
    write_file_atomic,
    write_folder,
)
from erniekit.checkpoint.crew import Crew, SharedTensors, write_together
from erniekit.checkpoint.files import Item, TensorFolder, open_tensors, write_tensors
from erniekit.checkpoint.manifest import read_number, verify, write_manifest
from erniekit.errors import CheckpointError
from erniekit.log import logger

STATE_FILE = "trainer_state.json"
SHARD_BYTES = 5 * 10**9
_NAME = re.compile(r"^checkpoint-(\d+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, not yet verified."""

    step: int
    path: Path

    def state(self) -> dict[str, Any]:
        """The content of trainer_state.json."""
        path = self.path / STATE_FILE
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}): this is no checkpoint of a run"
            ) from error

    def tensors(self, basename: str) -> TensorFolder:
        """Its tensors: `model` or `optimizer`."""
        return open_tensors(self.path, basename)


class CheckpointStore:
    """Reads and writes the checkpoints of an output folder."""

    def __init__(
        self, output_dir: Path, *, save_total_limit: int | None = None, crew: Crew | None = None
    ) -> None:
        """`crew`: the processes that call `save` together, where there are several."""
        self.output_dir = Path(output_dir)
        self._limit = save_total_limit
        self._crew = crew
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def list(self) -> list[Checkpoint]:
        """All that are there, in the order in which they were written."""
        if not self.output_dir.is_dir():
            return []
        found = []
        for path in self.output_dir.iterdir():
            match = _NAME.match(path.name)
            if match and path.is_dir():
                found.append((read_number(path), Checkpoint(int(match[1]), path)))
        return [checkpoint for _, checkpoint in sorted(found, key=lambda item: (item[0], item[1].step))]

    def newest_good(self) -> Checkpoint | None:
        """The newest checkpoint whose files are all as they were written; damaged ones are told of."""
        for checkpoint in reversed(self.list()):
            try:
                verify(checkpoint.path)
            except CheckpointError as error:
                logger.warning(f"{error}; looking for an older checkpoint")
                continue
            return checkpoint
        return None

    def open(self, path: Path) -> Checkpoint:
        """A checkpoint by its path, verified.

        Raises:
            CheckpointError: it is damaged; names the newest good one.
        """
        match = _NAME.match(path.name)
        if not match:
            raise CheckpointError(f"resume_from_checkpoint: {path} is not named checkpoint-<step>")
        try:
            verify(path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {CheckpointStore(path.parent).good_hint()}") from error
        return Checkpoint(int(match[1]), path)

    def latest(self) -> Checkpoint | None:
        """The checkpoint that was written last, not yet verified."""
        return self._pointed("latest") or next(reversed(self.list()), None)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best evaluation, when one was marked."""
        return self._pointed("best")

    def mark_best(self, step: int) -> None:
        """Point `best` at the checkpoint of a step, which is there."""
        if self._crew is not None and not self._crew.is_first:
            return
        path = self.output_dir / f"checkpoint-{step}"
        assert path.is_dir(), f"{path} is not there to be the best"
        self._point("best", path)
        self._retire()

    def save(
        self,
        step: int,
        *,
        model_items: Iterable[Item],
        optimizer_items: Iterable[Item],
        state: dict[str, Any],
        write_files: Callable[[Path], None],
        asynchronous: bool = False,
        model_basename: str = "model",
    ) -> None:
        """Write `checkpoint-<step>`; returns when it is durable, or at once when asynchronous.

        `model_basename` is the name of the files of `model_items`.
        An asynchronous save copies the tensors first, and writes in one thread; its error is
        raised by the next `save` or `wait`.

        Raises:
            CheckpointError: it could not be written (disk full, no permission); names the last good one.
        """
        self.wait()
        text = json.dumps(state, indent=2) + "\n"
        if not asynchronous:
            self._write(step, model_items, optimizer_items, text, write_files, model_basename)
            return
        # Tensors of the model change with the next step, so the thread gets copies of its own.
        copies = [_copies(model_items), _copies(optimizer_items)]

        def write() -> None:
            optimizer, model = copies.pop(), copies.pop()  # let go of when the thread ends
            self._write(step, model, optimizer, text, write_files, model_basename)

        self._start(step, write)

    def _start(self, step: int, write: Callable[[], None]) -> None:
        """Write in a thread."""

        def guarded() -> None:
            try:
                write()
            except BaseException as error:  # nothing may be lost with the thread: `wait` raises it
                logger.error(f"saving in the background failed: {error}")
                self._error = error

        # Not a daemon: an interpreter that ends lets the save finish.
        self._thread = threading.Thread(target=guarded, name=f"save-{step}")
        self._thread.start()

    def wait(self) -> None:
        """Wait for an asynchronous save; raises its error."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def clean(self) -> None:
        """Put right what a killed run left: half-written folders go, `latest` names what was written last."""
        try:
            for path in clean_leftovers(self.output_dir):
                logger.info(f"removed {path.name}, left by a process that was killed")
        except OSError as error:
            logger.warning(f"{self.output_dir}: leftovers of a killed process stay ({error})")
        every = self.list()
        if every and self.latest() != every[-1]:
            self._point("latest", every[-1].path)

    def save_shared(
        self,
        step: int,
        *,
        tensors: Sequence[SharedTensors],
        state: dict[str, Any],
        write_files: Callable[[Path], None],
        asynchronous: bool = False,
    ) -> None:
        """As `save`, by every process of the crew: each writes its parts, the first one what lies beside.

        Raises:
            CheckpointError: a process could not write; all raise, and name the last good checkpoint.
        """
        self.wait()
        text = json.dumps(state, indent=2) + "\n"
        if not asynchronous:
            self._write_shared(step, tensors, text, write_files)
            return
        copies = [each.held() for each in tensors]
        self._start(step, lambda: self._write_shared(step, copies, text, write_files))

    def _write_shared(
        self,
        step: int,
        tensors: Sequence[SharedTensors],
        state: str,
        write_files: Callable[[Path], None],
    ) -> None:
        assert self._crew is not None, "several processes are needed to share files"
        path = self.output_dir / f"checkpoint-{step}"

        def finish(folder: Path) -> None:
            self._complete(folder, state, write_files)

        try:
            write_together(path, self._crew, tensors, finish, max_shard_bytes=SHARD_BYTES)
            if self._crew.is_first:
                self._point("latest", path)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {self.good_hint()}") from error
        if self._crew.is_first:
            self._retire()

    def _write(
        self,
        step: int,
        model_items: Iterable[Item],
        optimizer_items: Iterable[Item],
        state: str,
        write_files: Callable[[Path], None],
        model_basename: str,
    ) -> None:
        path = self.output_dir / f"checkpoint-{step}"
        try:
            with write_folder(path, overwrite=True) as folder:
                for items, basename, metadata in (
                    (model_items, model_basename, {"format": "pt"}),
                    (optimizer_items, "optimizer", {}),
                ):
                    write_tensors(
                        folder, items, max_shard_bytes=SHARD_BYTES, metadata=metadata, basename=basename
                    )
                self._complete(folder, state, write_files)
            self._point("latest", path)
        except (CheckpointError, OSError) as error:
            reason = str(error) if isinstance(error, CheckpointError) else str(explain(error, path))
            raise CheckpointError(f"{reason}; {self.good_hint()}") from error
        self._retire()

    def _complete(self, folder: Path, state: str, write_files: Callable[[Path], None]) -> None:
        """Write what lies beside the tensors, the manifest last."""
        write_files(folder)
        (folder / STATE_FILE).write_text(state, encoding="utf-8")
        number = 1 + max((read_number(checkpoint.path) for checkpoint in self.list()), default=0)
        write_manifest(folder, number=number)

    def _point(self, pointer: str, path: Path) -> None:
        write_file_atomic(self.output_dir / pointer, f"{path.name}\n".encode())

    def good_hint(self) -> str:
        """What to go back to after an error, in words."""
        good = self.newest_good()
        return f"the newest good checkpoint is {good.path}" if good else "there is no good checkpoint yet"

    def _retire(self) -> None:
        """Delete the oldest checkpoints above the limit, but neither the best nor the latest."""
        if self._limit is None or self._limit < 1:
            return
        try:
            kept = {checkpoint.path for checkpoint in (self.best(), self.latest()) if checkpoint}
        except CheckpointError as error:
            logger.warning(f"save_total_limit: nothing is deleted now, for {error}")
            return
        every = self.list()
        surplus = len(every) - self._limit
        for checkpoint in every:
            if surplus <= 0:
                return
            if checkpoint.path in kept:
                continue
            surplus -= 1
            try:
                discard_folder(checkpoint.path)
            except OSError as error:
                # A checkpoint too many is no reason to end a run that could write its newest one.
                logger.warning(f"save_total_limit: {checkpoint.path} cannot be deleted ({error})")

    def _pointed(self, name: str) -> Checkpoint | None:
        pointer = self.output_dir / name
        try:
            target = pointer.read_bytes().decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CheckpointError(f"{pointer} cannot be read: {error.strerror or error}") from error
        match = _NAME.match(target)
        path = self.output_dir / target
        return Checkpoint(int(match[1]), path) if match and path.is_dir() else None


def _copies(items: Iterable[Item]) -> list[Item]:
    return [(name, dtype, array.copy()) for name, dtype, array in items]
