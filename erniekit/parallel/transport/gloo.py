"""Collectives between processes of several machines without GPUs: Paddle's gloo groups.

What gloo lacks (measured on Paddle 3.3.1: reduce-scatter, all-to-all, empty tensors) is made of what it
has and of messages. A group has a store of its own, since gloo's keys in a shared one collide between
groups. Gloo gives up when a member comes 30 seconds late, and nothing sets that; `barrier`, and what goes
through messages, wait as long as the links do.
"""

import time
from collections.abc import Sequence

import paddle
import paddle.distributed as dist
from paddle.base import core
from paddle.distributed.communication.group import Group as PaddleGroup

from erniekit.errors import PeerError
from erniekit.parallel.transport.links import Links
from erniekit.parallel.transport.memory_views import bytes_of

_OPERATIONS = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX, "min": dist.ReduceOp.MIN}
_NUMBER = 100  # above the numbers that Paddle gives to its own groups
_STORE_SECONDS = 900


class Gloo:
    """The collectives of one member of a group.

    Args:
        store: host and port of the group's own store, which its first member holds.
    """

    _opened = 0

    def __init__(self, links: Links, store: "core.TCPStore", name: str) -> None:
        Gloo._opened += 1
        self._links, self._store, self._size = links, store, len(links.ranks)
        number = _NUMBER + Gloo._opened
        # Others connect to the first member, which has to listen by then.
        time.sleep(0.4 if links.index else 0.0)
        process_group = core.ProcessGroupGloo.create(store, links.index, self._size, number)
        self._group = PaddleGroup(links.index, number, list(links.ranks), process_group, name)

    def all_reduce(self, tensor: paddle.Tensor, op: str) -> None:
        if tensor.size:
            self._guard(lambda: dist.all_reduce(tensor, _OPERATIONS[op], group=self._group))

    def all_gather(self, tensor: paddle.Tensor) -> paddle.Tensor:
        rows = tensor.shape[0] if tensor.shape else 1
        out = paddle.empty([self._size * rows, *tensor.shape[1:]], dtype=tensor.dtype)
        if out.size:
            self._guard(lambda: dist.stream.all_gather(out, tensor, group=self._group))
        return out

    def all_gather_unequal(self, tensor: paddle.Tensor) -> list[paddle.Tensor]:
        rows = self.all_gather(paddle.to_tensor([tensor.shape[0]], dtype="int64")).tolist()
        shapes = [[count, *tensor.shape[1:]] for count in rows]
        found = [paddle.empty(shape, dtype=tensor.dtype) for shape in shapes]
        return self._exchange([tensor] * self._size, found)

    def reduce_scatter(self, tensor: paddle.Tensor) -> paddle.Tensor:
        total = tensor.clone()
        self.all_reduce(total, "sum")
        rows = tensor.shape[0] // self._size
        return total[self._links.index * rows : (self._links.index + 1) * rows].contiguous()

    def all_to_all(
        self, tensor: paddle.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> paddle.Tensor:
        given, start = [], 0
        for count in send_counts:
            given.append(tensor[start : start + count].contiguous())
            start += count
        taken = [paddle.empty([count, *tensor.shape[1:]], dtype=tensor.dtype) for count in recv_counts]
        taken = self._exchange(given, taken)
        out = paddle.empty([sum(recv_counts), *tensor.shape[1:]], dtype=tensor.dtype)
        into, end = bytes_of(out), 0
        for part in taken:
            data = bytes_of(part)
            into[end : end + data.size] = data
            end += data.size
        return out

    def broadcast(self, tensor: paddle.Tensor, source: int) -> None:
        if tensor.size:
            root = self._links.ranks[source]
            self._guard(lambda: dist.broadcast(tensor, root, group=self._group))

    def barrier(self) -> None:
        self._links.barrier()

    def _exchange(self, given: list[paddle.Tensor], taken: list[paddle.Tensor]) -> list[paddle.Tensor]:
        """Send one tensor to every member and receive one from each."""
        mine = self._links.index
        others = [(mine + step) % self._size for step in range(1, self._size)]
        for to in others:
            self._links.send(to, bytes_of(given[to]), given[to])
        taken[mine] = given[mine]
        for source in reversed(others):
            self._links.receive_into(source, bytes_of(taken[source]))
        self._links.flush()
        return taken

    def _guard(self, call) -> None:  # type: ignore[no-untyped-def]
        try:
            call()
        except RuntimeError as error:
            first = next((line for line in str(error).splitlines() if "[" in line), "") or str(error)[:200]
            raise PeerError(
                f"a collective over ranks {list(self._links.ranks)} failed: a rank has ended, or came more "
                f"than 30 s late, which gloo does not wait for ({first.strip()})"
            ) from error
