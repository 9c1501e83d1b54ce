"""What processes with the same parameters share, and when (ZeRO, Rajbhandari et al. 2020).

| stage | this process keeps |
|---|---|
| 0 | everything; gradients are summed over all |
| 1 | its range of the optimizer's states |
| 2 | and of gradients, which are summed in every micro-batch |
| 3 | and of parameters, which are whole around the passes of their block only |

A range is of the numbers of each parameter, so all processes hold the same amount. Gradients of a block
are sent when its backward pass is over, beside that of the block before; in stages 0 and 1 in the last
micro-batch of a step. In stage 3 a block is gathered while the one before it is computed. What lies
outside of blocks (embedding, head, norms) is gathered for a whole micro-batch, and routers, whose weights
have losses of their own, are never parted.

The model does not know: its blocks are watched (`blocks.py`), and a parameter that is not here has its
shape and no memory.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import paddle

from erniekit.parallel import comm
from erniekit.parallel.blocks import paths_of_blocks, watch_blocks
from erniekit.parallel.distribute import Distribution
from erniekit.parallel.parts import find
from erniekit.parallel.placement import Item, Placement
from erniekit.parallel.ranges import RangePlacement, range_of
from erniekit.parallel.replicate import BUCKET_BYTES, Lane, Reduction, buckets, gather_whole
from erniekit.parallel.worker import Task, Worker

_OUTSIDE = -1


@dataclass(frozen=True)
class Shard:
    """This process's range of a parameter, from number `start` on; its `main_grad` is of it."""

    tensor: paddle.Tensor
    start: int


class Sharing:
    """The sharing of a model that is distributed; its micro-batches run between `begin` and `end`.

    shards: what this process updates, by name; None in stage 0, where that is everything.
    placements: of what this process keeps of each parameter, for files.
    """

    def __init__(
        self,
        model: Any,
        plan: Any,
        spread: Distribution,
        stage: int,
        *,
        overlap: bool = True,
        part_trained: bool = True,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Take over a model with weights.

        Args:
            plan: the family's module: BLOCKS, AHEAD_BLOCKS, ROUTERS.
            overlap: communicate while the model computes; False does it afterwards, with the same results.
            part_trained: False leaves trained parameters whole in stage 3: those of an adapter are small.
        """
        self.stage, self._spread, self._bucket_bytes = stage, spread, bucket_bytes
        self._parameters: dict[str, Any] = dict(model.named_parameters())
        self._lanes = {name: spread.lane(name, shared=stage > 0) for name in self._parameters}
        self._worker = Worker(apart=overlap)
        self._units = _units(model, plan, self._parameters)
        self._num_blocks = len(find(model, plan.BLOCKS))
        # Parameters that are whole only now and then, and this process's ranges of them.
        self._parted = frozenset(
            name
            for name, parameter in self._parameters.items()
            if stage == 3
            and (part_trained or parameter.stop_gradient)
            and _may_be_parted(name, self._lanes[name], plan)
        )
        self._own: dict[str, paddle.Tensor] = {}
        self.shards: dict[str, Shard] | None = None if stage == 0 else {}
        self.placements: dict[str, Placement | RangePlacement] = dict(spread.placements)
        for name in self._parameters:
            self._share(name)
        targets = None if self.shards is None else {name: one.tensor for name, one in self.shards.items()}
        every, once = self._lanes, dict[str, Lane]()
        if stage >= 2:  # what is summed in every micro-batch goes on to copies of the range once a step
            every = {name: replace(lane, copies=comm.Group()) for name, lane in self._lanes.items()}
            once = {n: Lane(comm.Group(), self._lanes[n].copies, comm.Group()) for n in targets or ()}
        self._reduction = Reduction(
            self._parameters, every.__getitem__, targets, self._worker, bucket_bytes=bucket_bytes
        )
        self._last_reduction = Reduction(
            {name: (targets or {})[name] for name in once}, once.__getitem__, bucket_bytes=bucket_bytes
        )
        self._whole: dict[int, Task | None] = {}
        self._passes: list[int] = []
        self._reducing = False
        self._unsent: set[int] = set(self._units)
        if overlap or self._parted:
            watch_blocks(model, plan, self)
        if self._parted:
            container = find(model, plan.BLOCKS.rpartition(".")[0])
            container.register_forward_pre_hook(lambda layer, inputs: self._need(_OUTSIDE))

    @paddle.no_grad()
    def _share(self, name: str) -> None:
        parameter, lane = self._parameters[name], self._lanes[name]
        if self.shards is None or (parameter.stop_gradient and name not in self._parted):
            return
        start, stop = range_of(parameter.size, lane.shards.rank, lane.shards.size)
        own = self._spread.ranges.pop(name, None)
        if own is None:
            own = _take_range(parameter, lane, release=name in self._parted)
        own.stop_gradient = parameter.stop_gradient
        self.placements[name] = RangePlacement(
            self._spread.placements[name],
            start,
            stop,
            counted=self._spread.answers(name) and lane.copies.rank == 0 and start < stop,
        )
        if start == stop:
            return
        if name in self._parted:
            self._own[name] = own
        if not parameter.stop_gradient:
            self.shards[name] = Shard(own, start)

    def counts(self, name: str) -> bool:
        """Whether this process is the one to save and count what it keeps of a parameter."""
        return self.placements[name].counted

    def kept(self, name: str) -> paddle.Tensor | None:
        """What this process keeps of a parameter's values, as `placements` says; None for nothing."""
        if name in self._own:
            return self._own[name]
        if self.shards is not None and name in self.shards:
            return self.shards[name].tensor
        return self._parameters[name] if isinstance(self.placements[name], Placement) else None

    def begin(self, *, last: bool) -> None:
        """A micro-batch begins; `last` is that of the step."""
        self._reducing = last or self.stage >= 2
        self._unsent = set(self._units)
        self._passes = []

    def end(self) -> None:
        """The backward pass of a micro-batch is over."""
        if self._reducing:
            self._send_rest()
        self._reducing = False
        self._release_all()

    def finish(self) -> None:
        """Return when all gradients of the step are summed, each where it belongs."""
        self._send_rest()
        self._reduction.finish()
        self._last_reduction.add((self.shards or {}) if self.stage >= 2 else ())
        self._last_reduction.finish()
        self._unsent = set(self._units)

    @paddle.no_grad()
    def take_updates(self) -> None:
        """Have whole parameters of the ranges that all processes have updated."""
        self._release_all()
        names = [] if self.shards is None else self._names_to_gather()
        for (group, dtype), own in self._alike(names).items():
            sizes = {name: _num_bytes(self._parameters[name]) for name in own}
            for bucket in buckets(sizes, self._bucket_bytes):
                for name, whole in self._gather(bucket, dtype, group).items():
                    paddle.assign(whole, output=self._parameters[name])

    def before_forward(self, block: int) -> None:
        if not self._parted:
            return
        self._passes.append(block)
        self._need(block)
        if block + 1 in self._units and block + 1 != self._num_blocks:
            self._begin_gathering(block + 1)

    def after_forward(self, block: int) -> None:
        self._release(block)

    def before_backward(self, block: int) -> None:
        if not self._parted:
            return
        self._need(block)
        if block == self._passes[-1]:
            self._begin_gathering_before(block, 1)

    def after_backward(self, block: int) -> None:
        if self._reducing:
            self._send(block)
        self._release(block)
        self._begin_gathering_before(block, 2)  # the one before is whole, and computes now

    def bytes_held(self) -> dict[str, int]:
        """Bytes of tensors in this process now: `weights` and `gradients`, also those on their way."""
        weights = [p for p in self._parameters.values() if p._is_initialized()] + list(self._own.values())
        ahead = [
            name for unit, task in self._whole.items() if task is not None for name in self._parted_of(unit)
        ]
        holders = [*self._parameters.values(), *(one.tensor for one in (self.shards or {}).values())]
        found = [g for p in holders for g in (p.grad, getattr(p, "main_grad", None)) if g is not None]
        return {
            "weights": sum(map(_num_bytes, weights)) + sum(_num_bytes(self._parameters[n]) for n in ahead),
            "gradients": sum(map(_num_bytes, found)) + self._reduction.bytes_under_way(),
        }

    def _send_rest(self) -> None:
        for unit in sorted(self._unsent, reverse=True):
            self._send(unit)

    def _send(self, unit: int) -> None:
        if unit in self._unsent:
            self._unsent.discard(unit)
            self._reduction.add(reversed(self._units[unit]))

    def _names_to_gather(self) -> list[str]:
        return [
            name
            for name, parameter in self._parameters.items()
            if not parameter.stop_gradient and name not in self._parted and self._lanes[name].shards.size > 1
        ]

    def _alike(self, names: Iterable[str]) -> dict[tuple[comm.Group, Any], list[str]]:
        """Names of parameters that are gathered together."""
        found: dict[tuple[comm.Group, Any], list[str]] = {}
        for name in names:
            found.setdefault((self._lanes[name].shards, self._parameters[name].dtype), []).append(name)
        return found

    def _gather(self, names: Iterable[str], dtype: Any, group: comm.Group) -> dict[str, paddle.Tensor]:
        shapes = {name: self._parameters[name].shape for name in names}
        own = {name: kept for name in shapes if (kept := self._range(name)) is not None}
        return gather_whole(shapes, own, dtype, group)

    def _range(self, name: str) -> paddle.Tensor | None:
        if name in self._own:
            return self._own[name]
        shard = (self.shards or {}).get(name)
        return None if shard is None else shard.tensor

    def _gather_unit(self, unit: int) -> dict[str, paddle.Tensor]:
        found: dict[str, paddle.Tensor] = {}
        for (group, dtype), names in self._alike(self._parted_of(unit)).items():
            found |= self._gather(names, dtype, group)
        return found

    def _parted_of(self, unit: int) -> Iterator[str]:
        return (name for name in self._units[unit] if name in self._parted)

    def _begin_gathering_before(self, block: int, passes: int) -> None:
        if self._parted and (place := self._passes.index(block) - passes) >= 0:
            self._begin_gathering(self._passes[place])

    def _begin_gathering(self, unit: int) -> None:
        if unit not in self._whole:
            self._whole[unit] = self._worker.submit(partial(self._gather_unit, unit))

    def _need(self, unit: int) -> None:
        """Have the parameters of a block whole."""
        self._begin_gathering(unit)
        task = self._whole[unit]
        if task is not None:
            for name, whole in task.result().items():
                whole._share_buffer_to(self._parameters[name])
            self._whole[unit] = None

    def _release(self, unit: int) -> None:
        if unit in self._whole:
            self._whole.pop(unit)
            for name in self._parted_of(unit):
                self._parameters[name]._clear_data()

    def _release_all(self) -> None:
        for unit in list(self._whole):
            self._release(unit)


def keep_ranges(items: Iterable[Item], model: Any, plan: Any, spread: Distribution) -> Iterator[Item]:
    """Items for parameters of `model`, each taken in before the next one; for stage 3 their ranges stay.

    So no more than one of them is ever whole. A parameter without memory gets it here.
    """
    parameters = dict(model.named_parameters())
    for item in items:
        name, lane = item[0], spread.lane(item[0], shared=True)
        if not parameters[name]._is_initialized():
            parameters[name].initialize()
        yield item
        if _may_be_parted(name, lane, plan):
            spread.ranges[name] = _take_range(parameters[name], lane, release=True)


@paddle.no_grad()
def _take_range(parameter: Any, lane: Lane, *, release: bool) -> paddle.Tensor:
    """This process's range of a parameter: of its memory, or a copy in place of it."""
    start, stop = range_of(parameter.size, lane.shards.rank, lane.shards.size)
    assert parameter.is_contiguous()
    own = parameter.detach().reshape([-1])[start:stop]
    if release:
        own = own.clone()
        parameter._clear_data()
    return own


def _may_be_parted(name: str, lane: Lane, plan: Any) -> bool:
    """Whether a parameter is in ranges in stage 3: not where nobody shares it, and no router."""
    routers = {router.rpartition(".")[0] for router in plan.ROUTERS}
    return lane.shards.size > 1 and not any(f".{router}." in name for router in routers)


def _units(model: Any, plan: Any, names: Mapping[str, Any]) -> dict[int, list[str]]:
    """Names by block, and what is outside of blocks or has uses there."""
    paths = paths_of_blocks(model, plan)
    routers = {router.rpartition(".")[0] for router in plan.ROUTERS}
    units: dict[int, list[str]] = {_OUTSIDE: [], **{place: [] for place in range(len(paths))}}
    places = {path: place for place, path in enumerate(paths)}
    for name in names:
        place = next((places[p] for p in _prefixes(name) if p in places), _OUTSIDE)
        if any(f".{router}." in name for router in routers):
            place = _OUTSIDE
        units[place].append(name)
    return units


def _prefixes(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


def _num_bytes(tensor: Any) -> int:
    return int(tensor.size) * int(tensor.element_size())
