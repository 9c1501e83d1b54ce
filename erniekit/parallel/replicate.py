"""Gradients of replicas: summed over the processes that computed them, many tensors at a time.

Every process adds up the gradients of its own micro-batches, scaled for the whole step already; their
sum is the gradient of the step. Where processes share what belongs to a parameter (ZeRO, Rajbhandari et
al. 2020), each gets the sum of its own range of numbers only, and forgets the rest.

A message is put together where the backward pass runs and travels beside it, on a thread. Which
parameters have a gradient at all is told in it: an expert that had no token in one replica may have had
some in another, and one without any in all of them is not to be updated, as in one process.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import paddle

from erniekit.ops import gradients
from erniekit.parallel import comm
from erniekit.parallel.ranges import length_of
from erniekit.parallel.worker import Task, Worker

BUCKET_BYTES = 16 << 20


@dataclass(frozen=True)
class Lane:
    """The processes that a gradient is summed over.

    Args:
        shards: each gets the sum of a range.
        copies: those with the same range.
        parts: those that had a part of the tokens for the same sequences.
    """

    shards: comm.Group
    copies: comm.Group
    parts: comm.Group

    @property
    def is_alone(self) -> bool:
        """Whether there is nobody else."""
        return self.shards.size == self.copies.size == self.parts.size == 1


class Reduction:
    """Sums gradients of trained parameters over the lanes they go, in fp32.

    Args:
        lane_of: the lane of a parameter, by its name.
        targets: where a sum belongs, by name: the tensors whose `main_grad` is the own range of it. Without
            them the parameters themselves, and all of it.
        bucket_bytes: of the gradients that are exchanged in one message.
    """

    def __init__(
        self,
        parameters: Mapping[str, Any],
        lane_of: Callable[[str], Lane],
        targets: Mapping[str, Any] | None = None,
        worker: Worker | None = None,
        *,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        trained = {name: p for name, p in parameters.items() if not p.stop_gradient}
        lanes = {name: lane_of(name) for name in trained}
        # Where nobody else has something to add, the gradient is where it belongs already.
        self._lanes = {n: lane for n, lane in lanes.items() if targets is not None or not lane.is_alone}
        self._parameters, self._targets = trained, targets
        self._worker = worker or Worker(apart=False)
        self._bucket_bytes = bucket_bytes
        self._under_way: deque[tuple[Lane, list[str], Task]] = deque()
        # Where parameters themselves get them, when all have come: none of their own may come after it left.
        self._sums: dict[str, paddle.Tensor] = {}

    @paddle.no_grad()
    def add(self, names: Iterable[str]) -> None:
        """Send the gradients of these parameters on their way, and forget them here.

        Those that were sent before come first, so that no more than this lies beside the gradients.
        """
        while self._under_way:
            self._arrive()
        for lane, bucket in self._buckets(names):
            message = self._packed(lane, bucket)
            self._under_way.append((lane, bucket, self._worker.submit(partial(_sum, message, lane))))
            del message

    def bytes_under_way(self) -> int:
        """Of gradients in messages that have not come yet."""
        return sum(4 * self._parameters[n].size for _, names, _ in self._under_way for n in names)

    def finish(self) -> None:
        """Wait until all sums are where they belong."""
        while self._under_way:
            self._arrive()
        for name in self._lanes:
            assert gradients.of(self._parameters[name]) is None, f"{name} got a gradient after it was sent"
        for name, total in self._sums.items():
            self._parameters[name].main_grad = total
        self._sums = {}

    def _buckets(self, names: Iterable[str]) -> Iterator[tuple[Lane, list[str]]]:
        """Names whose gradients travel together."""
        by_lane: dict[Lane, list[str]] = {}
        for name in names:
            if name in self._lanes:
                by_lane.setdefault(self._lanes[name], []).append(name)
        for lane, own in by_lane.items():
            sizes = {name: 4 * self._parameters[name].size for name in own}
            yield from ((lane, bucket) for bucket in buckets(sizes, self._bucket_bytes))

    def _packed(self, lane: Lane, names: Sequence[str]) -> paddle.Tensor:
        """A row for each process that gets a range: its numbers, and which of the gradients are there."""
        count = lane.shards.size
        found = [(self._parameters[name], gradients.of(self._parameters[name])) for name in names]
        there = [float(gradient is not None) for _, gradient in found]
        parts = []
        while found:
            parameter, gradient = found.pop(0)
            parts.append(_in_rows(gradient, parameter.size, count))
            gradients.clear(parameter)
            del gradient
        parts.append(paddle.to_tensor([there] * count, dtype="float32"))
        return paddle.concat(parts, axis=1)

    @paddle.no_grad()
    def _arrive(self) -> None:
        lane, names, task = self._under_way.popleft()
        sums = task.result().reshape([-1])
        there, begin = sums[-len(names) :].tolist(), 0
        for name, present in zip(names, there, strict=True):
            parameter = self._parameters[name]
            length = length_of(parameter.size, lane.shards.size)
            own = sums[begin : begin + length]
            begin += length
            if not present:
                continue
            if self._targets is None:
                self._sums[name] = own.reshape(parameter.shape)
            elif name in self._targets:
                target = self._targets[name]
                own = own[: target.size]
                main = getattr(target, "main_grad", None)
                target.main_grad = own if main is None else main.add_(own)


def buckets(sizes: Mapping[str, int], limit: int) -> Iterator[list[str]]:
    """Names in their order, so many together as are not above `limit`, but at least one."""
    bucket: list[str] = []
    held = 0
    for name, size in sizes.items():
        if bucket and held + size > limit:
            yield bucket
            bucket, held = [], 0
        bucket.append(name)
        held += size
    if bucket:
        yield bucket


@paddle.no_grad()
def _sum(rows: paddle.Tensor, lane: Lane) -> paddle.Tensor:
    comm.all_reduce(rows, lane.parts)
    own = comm.reduce_scatter(rows, lane.shards)
    return comm.all_reduce(own, lane.copies)


def _in_rows(gradient: paddle.Tensor | None, size: int, count: int) -> paddle.Tensor:
    """A gradient as the ranges of so many processes, one in a row; zeros in place of none."""
    length = length_of(size, count)
    if gradient is None:
        return paddle.zeros([count, length], dtype="float32")
    flat = gradient.reshape([-1])
    if length * count != size:
        flat = paddle.concat([flat, paddle.zeros([length * count - size], dtype="float32")])
    return flat.reshape([count, length])


@paddle.no_grad()
def gather_whole(
    shapes: Mapping[str, Sequence[int]], own: Mapping[str, paddle.Tensor], dtype: Any, group: comm.Group
) -> dict[str, paddle.Tensor]:
    """Whole tensors of the ranges that the processes of a group have of each; all of them call it.

    Args:
        shapes: of the whole tensors. own: this process's ranges; a missing one is empty.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    lengths = {name: length_of(size, group.size) for name, size in sizes.items()}
    sent = paddle.concat([_padded(own.get(name), length, dtype) for name, length in lengths.items()])
    rows = comm.all_gather(sent, group).reshape([group.size, -1])
    found, begin = {}, 0
    for name, length in lengths.items():
        whole = rows[:, begin : begin + length].reshape([-1])[: sizes[name]]
        found[name] = whole.reshape(list(shapes[name]))
        begin += length
    return found


def _padded(own: paddle.Tensor | None, length: int, dtype: Any) -> paddle.Tensor:
    if own is None:
        return paddle.zeros([length], dtype=dtype)
    if own.size == length:
        return own
    return paddle.concat([own, paddle.zeros([length - own.size], dtype=dtype)])
