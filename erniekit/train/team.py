"""The processes of a run, as its loop sees them: whose micro-batches, what is summed, what is agreed.

Every process makes the micro-batches of the whole step, so that what they are divided by needs no
exchange; those that read other sequences ("replicas") compute them in turn. A step whose number they
cannot share evenly is filled up with micro-batches that count nothing, because experts spread over
replicas need all of them in every forward pass.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, TypeVar, cast

from erniekit.parallel import comm
from erniekit.parallel.distribute import Distribution
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.parallel.sharding import Sharing

Made = TypeVar("Made")


@dataclass(frozen=True)
class Turn:
    """A micro-batch for this process: its number in the step, and whether it counts."""

    number: int
    batch: Any
    counts: bool = True


@dataclass(frozen=True)
class Team:
    """One process, or those over which a model is spread.

    Args:
        sharing: what those with the same parameters share; None sums gradients after the last backward pass.
        pipeline: runs micro-batches through the stages of a model that is cut.
    """

    spread: Distribution | None = None
    sharing: Sharing | None = None
    pipeline: PipelineEngine | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.spread is None or self.spread.mesh.world.rank == 0

    @property
    def num_replicas(self) -> int:
        """Processes that compute other micro-batches of a step."""
        return 1 if self.spread is None else self.spread.mesh.batch.size

    def turns(self, batches: Iterable[Any], multiple: int = 1) -> Iterator[Turn]:
        """This process's micro-batches of a step, or of an evaluation; so many times `multiple` of them."""
        size = self.num_replicas
        rank = 0 if self.spread is None else self.spread.mesh.batch.rank
        rest, last = iter(batches), None
        for number in count():
            found = list(islice(rest, size))
            if not found and number % multiple == 0:
                return
            counts = rank < len(found)
            last = found[rank if counts else 0] if found else last
            yield Turn(number * size + rank, last, counts)

    def turns_of_step(self, batches: Iterable[Any]) -> list[Turn]:
        """This process's micro-batches of a step, as many as the schedule of a pipeline can take."""
        return list(self.turns(batches, 1 if self.pipeline is None else self.pipeline.multiple))

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Within it a micro-batch runs, forward and backward; `last` is that of the step."""
        if self.sharing is not None:
            self.sharing.begin(last=last)
        yield
        if self.sharing is not None:
            self.sharing.end()

    def sum_gradients(self, parameters: Mapping[str, Any]) -> None:
        """Make the gradients of this process those of the step."""
        if self.sharing is not None:
            self.sharing.finish()
        elif self.spread is not None:
            self.spread.sum_gradients(parameters)

    def take_updates(self) -> None:
        """Take over what others have updated."""
        if self.sharing is not None:
            self.sharing.take_updates()

    def held(self) -> dict[str, tuple[Any, int]] | None:
        """Of the parameters that this process updates in part: what of each, and its first number."""
        if self.sharing is None or self.sharing.shards is None:
            return None
        return {name: (shard.tensor, shard.start) for name, shard in self.sharing.shards.items()}

    def placements(self) -> Mapping[str, Any]:
        """What this process keeps of each parameter, and of its state."""
        assert self.spread is not None
        return self.spread.placements if self.sharing is None else self.sharing.placements

    def kept(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """The values of parameters as `placements` places them, of those that this process is to save."""
        placements, sharing = self.placements(), self.sharing
        return {
            name: parameter if sharing is None else sharing.kept(name)
            for name, parameter in parameters.items()
            if placements[name].counted
        }

    def counts(self, name: str) -> bool:
        """Whether this process counts the gradient of a parameter: one of those that have it does."""
        return self.spread is None or self.placements()[name].counted

    def sum_of(self, number: float) -> float:
        """The sum of a number over all processes."""
        if self.spread is None:
            return number
        return sum(comm.gather_objects(number, self.spread.mesh.world))

    def total(self, values: Mapping[str, float]) -> dict[str, float]:
        """Sums of named numbers over the processes that have parts of them."""
        if self.spread is None:
            return dict(values)
        mesh = self.spread.mesh
        # Processes that split matrices compute the same numbers: the first of them tells.
        own = dict(values) if mesh.tensor.rank == 0 else {}
        found: dict[str, float] = {}
        for part in comm.gather_objects(own, mesh.world):
            for name, value in part.items():
                found[name] = found.get(name, 0.0) + value
        return found

    def of_first(self, make: Callable[[], Made]) -> Made:
        """What the first process makes, or its error, in all of them."""
        if self.spread is None:
            return make()
        made: Made | None = None
        error: Exception | None = None
        if self.is_first:
            try:
                made = make()
            except Exception as raised:
                error = raised
        made, error = comm.broadcast_object((made, error), self.spread.mesh.world)
        if error is not None:
            raise error
        return cast(Made, made)

    def union(self, found: Mapping[str, Made]) -> dict[str, Made]:
        """What the processes that compute other micro-batches found, together."""
        if self.spread is None:
            return dict(found)
        parts = comm.gather_objects(dict(found), self.spread.mesh.batch)
        return {key: value for part in parts for key, value in part.items()}

    def agree(self, signal: int | None) -> int | None:
        """The largest of what the processes were told, so that all stop at the same step."""
        if self.spread is None:
            return signal
        return max(comm.gather_objects(signal or 0, self.spread.mesh.world)) or None


ALONE = Team()
