"""Collectives between processes of one machine, through memory that they share.

Gloo has no reduce-scatter and no all-to-all, gives a group up when one member is 30 seconds late, and
takes about half a second to open a group. Here every member writes what it gives into a piece of memory
of its own, all meet, and each reads what it needs from the others: an all-to-all is one write and one
read of every byte. Sums are taken in the order of the members, so that all get the same bits.

Sums and gathered tensors go through in parts of a few MiB, so pieces stay small beside what they carry.

The pieces are anonymous files (`memfd`): the others open them through /proc, and nothing is left when a
process is killed. Each member has two and takes turns. A piece is written again only two calls later;
every member that enters the meeting of the call in between has finished reading the earlier one.
"""

import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from erniekit.errors import RunError
from erniekit.parallel.transport.links import Links
from erniekit.parallel.transport.memory_views import bytes_of, combine, num_bytes

_SMALL = 32 * 1024  # bytes up to which every member sums everything, to meet once instead of twice
_PAGE = 1 << 16
_PART = 4 << 20  # bytes of a member in one call, where a call can be taken apart
CALLS = ("all_reduce", "all_gather", "all_gather_unequal", "reduce_scatter", "all_to_all", "broadcast")


def machine_of_process() -> str:
    """What is equal for processes that can share memory; unique where that cannot be."""
    if not hasattr(os, "memfd_create"):
        return f"{os.uname().nodename}-{os.getpid()}"
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return "/".join([boot, *(os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "net"))])


class SharedMemory:
    """The collectives of one member of a group whose members share this machine."""

    def __init__(self, links: Links) -> None:
        self._links, self._index, self._size = links, links.index, len(links.ranks)
        self._header = 64 * -(-8 * (self._size + 3) // 64)
        self._own = [_Piece.make(f"erniekit-{turn}") for turn in range(2)]
        self.address = ",".join(piece.address for piece in self._own)
        self._others: list[list[_Piece]] = []
        self._call = 0

    def introduce(self, addresses: Sequence[str]) -> None:
        """Open the pieces of the others."""
        for index, address in enumerate(addresses):
            pieces = [_Piece.open(one) for one in address.split(",")] if index != self._index else self._own
            self._others.append(pieces)

    def all_reduce(self, tensor: paddle.Tensor, op: str) -> None:
        data = bytes_of(tensor)
        for start in range(0, data.size, _PART):
            self._all_reduce(data[start : start + _PART], tensor.dtype, op, data.size)

    def _all_reduce(self, data: np.ndarray, dtype: Any, op: str, total: int) -> None:
        pieces = self._publish("all_reduce", [data], [], total)
        for index in range(self._size):
            self._expect_size(index, total)
        sources = [self._read(piece, 0, data.size) for piece in pieces]
        if data.size <= _SMALL:
            combine(sources, data, dtype, op)
            return
        bounds = _bounds(data.size, self._size)
        low, high = bounds[self._index], bounds[self._index + 1]
        # Of my piece only I read this part, so the result may take its place.
        combine([source[low:high] for source in sources], sources[self._index][low:high], dtype, op)
        self._links.barrier()
        for source, start, end in zip(sources, bounds[:-1], bounds[1:], strict=True):
            _copy(data[start:end], source[start:end])

    def all_gather(self, tensor: paddle.Tensor) -> paddle.Tensor:
        data = bytes_of(tensor)
        rows = tensor.shape[0] if tensor.shape else 1
        out = paddle.empty([self._size * rows, *tensor.shape[1:]], dtype=tensor.dtype)
        into = bytes_of(out).reshape([self._size, data.size])
        for start in range(0, max(data.size, 1), _PART):
            part = data[start : start + _PART]
            pieces = self._publish("all_gather", [part], [], data.size)
            for index, piece in enumerate(pieces):
                self._expect_size(index, data.size)
                _copy(into[index, start : start + part.size], self._read(piece, 0, part.size))
        return out

    def all_gather_unequal(self, tensor: paddle.Tensor) -> list[paddle.Tensor]:
        pieces = self._publish("all_gather_unequal", [bytes_of(tensor)], [tensor.shape[0]])
        found = []
        for piece in pieces:
            out = paddle.empty([int(self._words(piece)[2]), *tensor.shape[1:]], dtype=tensor.dtype)
            _copy(bytes_of(out), self._read(piece, 0, num_bytes(out)))
            found.append(out)
        return found

    def reduce_scatter(self, tensor: paddle.Tensor) -> paddle.Tensor:
        out = paddle.empty([tensor.shape[0] // self._size, *tensor.shape[1:]], dtype=tensor.dtype)
        into = bytes_of(out)
        if not num_bytes(tensor):
            self._publish("reduce_scatter", [], [])
            return out
        data = bytes_of(tensor).reshape([self._size, into.size])
        step = max(64, _PART // self._size // 64 * 64)
        for start in range(0, into.size, step):
            part = into[start : start + step]
            # What each member gets of it, one after the other.
            pieces = self._publish(
                "reduce_scatter", [row[start : start + step] for row in data], [], data.size
            )
            for index in range(self._size):
                self._expect_size(index, data.size)
            own = self._index * part.size
            combine([self._read(piece, own, part.size) for piece in pieces], part, tensor.dtype, "sum")
        return out

    def all_to_all(
        self, tensor: paddle.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int]
    ) -> paddle.Tensor:
        out = paddle.empty([sum(recv_counts), *tensor.shape[1:]], dtype=tensor.dtype)
        row = num_bytes(tensor[:1]) if tensor.shape[0] else num_bytes(out[:1]) if out.shape[0] else 0
        starts = np.concatenate([[0], np.cumsum(send_counts)]) * row
        pieces = self._publish("all_to_all", [bytes_of(tensor)], starts.tolist())
        into, end = bytes_of(out), 0
        for index, (piece, count) in enumerate(zip(pieces, recv_counts, strict=True)):
            start, stop = (int(word) for word in self._words(piece)[2 + self._index : 4 + self._index])
            if stop - start != count * row:
                raise RunError(
                    f"rank {self._links.ranks[index]} sends {stop - start} bytes in an all-to-all, and rank "
                    f"{self._links.ranks[self._index]} expects {count} rows of {row} bytes"
                )
            _copy(into[end : end + stop - start], self._read(piece, start, stop - start))
            end += stop - start
        return out

    def broadcast(self, tensor: paddle.Tensor, source: int) -> None:
        data = bytes_of(tensor)
        for start in range(0, max(data.size, 1), _PART):
            part = data[start : start + _PART]
            pieces = self._publish("broadcast", [part] if self._index == source else [], [source], data.size)
            self._expect_size(source, data.size)
            if self._index != source:
                _copy(part, self._read(pieces[source], 0, part.size))

    def barrier(self) -> None:
        self._links.barrier()

    def _publish(
        self, name: str, parts: Sequence[np.ndarray], words: Sequence[int], total: int | None = None
    ) -> "list[_Piece]":
        """Write into this call's own piece, meet, and return the pieces of all members.

        Args:
            total: bytes of the tensor that `parts` are of, where they are not all of it.
        """
        turn = self._call % 2
        self._call += 1
        own = self._own[turn]
        size = sum(part.size for part in parts)
        own.reach(self._header + size)
        header = self._words(own)
        header[0], header[1] = 16 * self._call + CALLS.index(name), size if total is None else total
        header[2 : 2 + len(words)] = words
        start = 0
        for part in parts:
            _copy(self._read(own, start, part.size), part)
            start += part.size
        self._links.barrier()
        pieces = [pair[turn] for pair in self._others]
        for index, piece in enumerate(pieces):
            mark = int(self._words(piece)[0])
            if mark != header[0]:
                call, other = divmod(mark, 16)
                raise RunError(
                    f"rank {self._links.ranks[index]} is in {CALLS[other]} (call {call}) where rank "
                    f"{self._links.ranks[self._index]} is in {name} (call {self._call}): the ranks of a "
                    "group have to make the same calls in the same order"
                )
        return pieces

    def _expect_size(self, index: int, size: int) -> None:
        piece = self._others[index][(self._call - 1) % 2]
        if (found := int(self._words(piece)[1])) != size:
            raise RunError(
                f"rank {self._links.ranks[index]} gives {found} bytes and rank "
                f"{self._links.ranks[self._index]} {size}: the tensors of a collective have to be of one size"
            )

    def _words(self, piece: "_Piece") -> np.ndarray:
        return piece.view(0, self._header).view(np.int64)

    def _read(self, piece: "_Piece", start: int, size: int) -> np.ndarray:
        return piece.view(self._header + start, size)


class _Piece:
    """One piece of memory, own or another process's; grows and never shrinks."""

    def __init__(self, file: int, *, own: bool) -> None:
        self._file, self._own = file, own
        self._bytes = np.empty(0, np.uint8)
        self.address = f"/proc/{os.getpid()}/fd/{file}"

    @classmethod
    def make(cls, name: str) -> "_Piece":
        piece = cls(os.memfd_create(name, os.MFD_CLOEXEC), own=True)
        piece.reach(_PAGE)
        return piece

    @classmethod
    def open(cls, address: str) -> "_Piece":
        return cls(os.open(address, os.O_RDONLY | os.O_CLOEXEC), own=False)

    def reach(self, size: int) -> None:
        """Grow the own piece to at least `size` bytes."""
        if size > len(self._bytes):
            os.ftruncate(self._file, _PAGE * -(-max(size, len(self._bytes) * 5 // 4) // _PAGE))
            self._map()

    def view(self, start: int, size: int) -> np.ndarray:
        if start + size > len(self._bytes):
            self._map()
        return self._bytes[start : start + size]

    def _map(self) -> None:
        access = mmap.ACCESS_WRITE if self._own else mmap.ACCESS_READ
        length = os.fstat(self._file).st_size
        self._bytes = np.frombuffer(mmap.mmap(self._file, length, access=access), np.uint8)


def _bounds(size: int, parts: int) -> list[int]:
    """Where the parts of `size` bytes begin and end, in whole multiples of 64 bytes but for the last."""
    step = 64 * -(-size // (64 * parts))
    return [min(size, part * step) for part in range(parts + 1)]


def _copy(into: np.ndarray, source: np.ndarray) -> None:
    """memcpy that lets other threads of Python run."""
    assert into.size == source.size
    if into.size:
        ctypes.memmove(into.ctypes.data, source.ctypes.data, into.size)
