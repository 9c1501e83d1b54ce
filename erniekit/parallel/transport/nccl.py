"""Collectives between GPUs: Paddle's NCCL groups, directly. Not executed in this project's CI."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed as dist

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}


class Nccl:
    """The collectives of one member of a group.

    Args:
        group: a `paddle.distributed` group.
        store: its store, kept as long as the group.
    """

    def __init__(self, group: Any, store: Any) -> None:
        self._group, self._store, self._size = group, store, group.nranks

    def all_reduce(self, tensor: paddle.Tensor, op: str) -> None:
        if tensor.size:
            dist.all_reduce(tensor, _OPERATIONS[op], group=self._group)

    def all_gather(self, tensor: paddle.Tensor) -> paddle.Tensor:
        rows = tensor.shape[0] if tensor.shape else 1
        out = paddle.empty([self._size * rows, *tensor.shape[1:]], dtype=tensor.dtype)
        if out.size:
            dist.stream.all_gather(out, tensor, group=self._group)
        return out

    def all_gather_unequal(self, tensor: paddle.Tensor) -> list[paddle.Tensor]:
        rows = self.all_gather(paddle.to_tensor([tensor.shape[0]], dtype="int64")).tolist()
        repeated = paddle.concat([tensor] * self._size) if tensor.shape[0] else tensor
        out = self.all_to_all(repeated, [tensor.shape[0]] * self._size, rows)
        ends = np.cumsum(rows).tolist()
        return [out[end - count : end] for end, count in zip(ends, rows, strict=True)]

    def reduce_scatter(self, tensor: paddle.Tensor) -> paddle.Tensor:
        out = paddle.empty([tensor.shape[0] // self._size, *tensor.shape[1:]], dtype=tensor.dtype)
        if out.size:
            dist.stream.reduce_scatter(out, tensor, group=self._group)
        return out

    def all_to_all(
        self, tensor: paddle.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> paddle.Tensor:
        out = paddle.empty([sum(recv_counts), *tensor.shape[1:]], dtype=tensor.dtype)
        dist.alltoall_single(out, tensor, list(send_counts), list(recv_counts), group=self._group)
        return out

    def broadcast(self, tensor: paddle.Tensor, source: int) -> None:
        if tensor.size:
            dist.broadcast(tensor, self._group.ranks[source], group=self._group)

    def barrier(self) -> None:
        dist.barrier(self._group)

    def send(self, tensor: paddle.Tensor, to: int) -> None:
        dist.isend(tensor, self._group.ranks[to], group=self._group)

    def receive(self, tensor: paddle.Tensor, source: int) -> None:
        dist.recv(tensor, self._group.ranks[source], group=self._group)
