"""Collectives with gradients: each is undone in the backward pass by the one that is its transpose.

| forward | backward |
|---|---|
| `copy_to`: nothing (a tensor that all members hold) | sum over the members |
| `reduce_from`: sum over the members | nothing |
| `scatter_to`: own part along an axis | gather |
| `gather_from`: gather along an axis | own part |
| `all_gather_from`: gather along an axis | sum, own part (reduce-scatter) |
| `reduce_scatter_to`: sum, own part | gather |
| `all_to_all_rows` | all-to-all back |

`gather_from` is for what all members then use alike: every member has the whole gradient, and takes its
part. `all_gather_from` is for what each member then uses for itself (a column of a matrix): the whole
gradient is the sum of theirs. On a group of one all of them return what they are given.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.errors import PeerError
from erniekit.parallel import comm
from erniekit.parallel.comm import Group

_LOST_IN_BACKWARD = re.compile(r"\bPeerError: (.+)")


@contextmanager
def peers_named() -> Iterator[None]:
    """A peer that was lost in a backward pass stays a PeerError; Paddle makes an OSError with its words."""
    try:
        yield
    except OSError as error:
        found = _LOST_IN_BACKWARD.search(str(error))
        if found is None:
            raise
        raise PeerError(found[1].strip()) from None


def copy_to(x: paddle.Tensor, group: Group) -> paddle.Tensor:
    """x as it is; its gradient is summed over the members."""
    return x if group.size == 1 else _Copy.apply(x, group)


def reduce_from(x: paddle.Tensor, group: Group) -> paddle.Tensor:
    """The sum of x over the members; its gradient goes back as it is."""
    return x if group.size == 1 else _Reduce.apply(x, group)


def scatter_to(x: paddle.Tensor, group: Group, axis: int = 0) -> paddle.Tensor:
    """The own part of x along an axis, of an x that all members hold."""
    return x if group.size == 1 else _Scatter.apply(x, group, axis)


def gather_from(x: paddle.Tensor, group: Group, axis: int = 0) -> paddle.Tensor:
    """The x of all members one after the other along an axis, for what all then compute alike."""
    return x if group.size == 1 else _Gather.apply(x, group, axis)


def all_gather_from(x: paddle.Tensor, group: Group, axis: int = 0) -> paddle.Tensor:
    """The x of all members one after the other along an axis, for what each then computes differently."""
    return x if group.size == 1 else _AllGather.apply(x, group, axis)


def reduce_scatter_to(x: paddle.Tensor, group: Group, axis: int = 0) -> paddle.Tensor:
    """The own part along an axis of the sum of x over the members."""
    return x if group.size == 1 else _ReduceScatter.apply(x, group, axis)


def all_to_all_rows(
    x: paddle.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], group: Group
) -> paddle.Tensor:
    """Rows of x to their members, in the order of the members; returns the rows from them."""
    if group.size == 1:
        return x
    return _AllToAll.apply(x, list(send_counts), list(recv_counts), group)


def gathered(x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
    """The x of all members one after the other along an axis, without a gradient."""
    if axis == 0:
        return comm.all_gather(x, group)
    order = _first(axis, x.ndim)
    return comm.all_gather(x.transpose(order), group).transpose(_back(order)).contiguous()


def summed_part(x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
    """The own part along an axis of the sum over the members, without a gradient."""
    if axis == 0:
        return comm.reduce_scatter(x, group)
    order = _first(axis, x.ndim)
    return comm.reduce_scatter(x.transpose(order), group).transpose(_back(order)).contiguous()


def own_part(x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
    """The own part of x along an axis, without a gradient."""
    rows = x.shape[axis]
    assert rows % group.size == 0, f"axis {axis} of {x.shape} over {group.size} members"
    size = rows // group.size
    return paddle.slice(x, [axis], [group.rank * size], [(group.rank + 1) * size]).contiguous()


def _first(axis: int, num_axes: int) -> list[int]:
    """Order of axes that puts one first."""
    return [axis, *(other for other in range(num_axes) if other != axis)]


def _back(order: list[int]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


class _Copy(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Group) -> paddle.Tensor:
        ctx.group = group
        # The same memory. Not `detach`, which Paddle takes for an operation in place; no `view` of nothing.
        return x.view(x.shape) if x.is_contiguous() and x.size else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return comm.all_reduce(grad.clone(), ctx.group)


class _Reduce(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Group) -> paddle.Tensor:
        return comm.all_reduce(x.clone(), group)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return grad


class _Scatter(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
        ctx.group, ctx.axis = group, axis % x.ndim
        return own_part(x, group, ctx.axis)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return gathered(grad, ctx.group, ctx.axis)


class _Gather(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
        ctx.group, ctx.axis = group, axis % x.ndim
        return gathered(x, group, ctx.axis)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return own_part(grad, ctx.group, ctx.axis)


class _AllGather(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
        ctx.group, ctx.axis = group, axis % x.ndim
        return gathered(x, group, ctx.axis)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return summed_part(grad, ctx.group, ctx.axis)


class _ReduceScatter(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, group: Group, axis: int) -> paddle.Tensor:
        ctx.group, ctx.axis = group, axis % x.ndim
        return summed_part(x, group, ctx.axis)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return gathered(grad, ctx.group, ctx.axis)


class _AllToAll(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, send_counts: list[int], recv_counts: list[int], group: Group
    ) -> paddle.Tensor:
        ctx.send_counts, ctx.recv_counts, ctx.group = send_counts, recv_counts, group
        return comm.all_to_all(x, send_counts, recv_counts, group)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return comm.all_to_all(grad, ctx.recv_counts, ctx.send_counts, ctx.group)
