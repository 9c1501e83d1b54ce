"""Safetensors files that several processes write together, each the parts that it holds.

Where every byte of a whole tensor lies follows from the names, types and shapes of all of them. One
process lays the files out, with their headers and their full length; then each writes its parts where
they belong, and nothing is gathered anywhere. The files are those that one process would have written,
so whoever reads them need not know how many there were.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from erniekit.checkpoint.files import index_text, shard_name, shards_of, sync
from erniekit.checkpoint.header import BITS, Spec, num_bytes, write_header


@dataclass(frozen=True)
class Part:
    """A block of a tensor: raw bits `array`, the first of them at `start` of the whole one."""

    name: str
    start: tuple[int, ...]
    array: np.ndarray


@dataclass(frozen=True)
class _Place:
    file: str
    offset: int
    spec: Spec


@dataclass(frozen=True)
class FilePlan:
    """Where tensors will lie: the same for all processes, whoever made it."""

    headers: dict[str, bytes]
    sizes: dict[str, int]
    places: dict[str, _Place]
    index: tuple[str, str] | None

    def lay_out(self, folder: Path) -> None:
        """Write headers and index, and take the room for the rest; raises OSError when there is none."""
        for name, header in self.headers.items():
            with (folder / name).open("wb") as file:
                file.write(header)
                file.flush()
                os.posix_fallocate(file.fileno(), 0, self.sizes[name])
                sync(file)
        if self.index is not None:
            name, text = self.index
            (folder / name).write_text(text, encoding="utf-8")

    def write(self, folder: Path, parts: Iterable[Part]) -> None:
        """Write parts to files that were laid out, and make them durable; raises OSError."""
        descriptors: dict[str, int] = {}
        try:
            for part in parts:
                place = self.places[part.name]
                if place.file not in descriptors:
                    descriptors[place.file] = os.open(folder / place.file, os.O_WRONLY)
                _write_part(descriptors[place.file], place, part)
            for descriptor in descriptors.values():
                os.fsync(descriptor)
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)


def plan_files(
    specs: Sequence[Spec], *, max_shard_bytes: int, metadata: dict[str, str], basename: str = "model"
) -> FilePlan:
    """Lay out whole tensors as `files.write_tensors` does."""
    shards = list(shards_of(specs, max_shard_bytes))
    headers, sizes, places = {}, {}, {}
    for number, shard in enumerate(shards):
        file = shard_name(basename, number, len(shards))
        headers[file], offsets = write_header(shard, metadata)
        sizes[file] = len(headers[file]) + sum(num_bytes(dtype, shape) for _, dtype, shape in shard)
        for spec, offset in zip(shard, offsets, strict=True):
            assert spec[0] not in places, f"{spec[0]} is written twice"
            places[spec[0]] = _Place(file, offset, spec)
    index = None
    if len(shards) > 1:
        total = sum(num_bytes(dtype, shape) for _, dtype, shape in specs)
        where = {name: place.file for name, place in places.items()}
        index = f"{basename}.safetensors.index.json", index_text(where, total)
    return FilePlan(headers, sizes, places, index)


def _write_part(descriptor: int, place: _Place, part: Part) -> None:
    name, dtype, shape = place.spec
    width = np.dtype(BITS[dtype]).itemsize
    array = np.ascontiguousarray(part.array)
    assert array.dtype.itemsize == width, f"{name}: {array.dtype} for {dtype}"
    content = memoryview(array.reshape(-1).view(np.uint8).data)
    for first, offset, length in _runs(shape, part.start, part.array.shape):
        _write_all(
            descriptor, content[first * width : (first + length) * width], place.offset + offset * width
        )


def _runs(
    whole: tuple[int, ...], start: tuple[int, ...], shape: tuple[int, ...]
) -> Iterator[tuple[int, int, int]]:
    """Stretches of a block that lie together in the whole: place in the block, in the whole, and length.

    Places and lengths are in numbers, row by row.
    """
    assert len(whole) == len(start) == len(shape), (whole, start, shape)
    assert all(0 <= s and s + n <= w for w, s, n in zip(whole, start, shape, strict=True)), (
        whole,
        start,
        shape,
    )
    # The axes behind `axis` are whole, so a stretch covers the block's part of `axis` and all behind it.
    axis = len(whole)
    while axis > 0 and shape[axis - 1 :] == whole[axis - 1 :]:
        axis -= 1
    axis = max(axis - 1, 0)
    strides = [math.prod(whole[number + 1 :]) for number in range(len(whole))]
    length = math.prod(shape[axis:])
    if not length:
        return
    for number, outer in enumerate(np.ndindex(*shape[:axis])):
        places = [*(s + o for s, o in zip(start, outer, strict=False)), *start[axis:]]
        yield number * length, sum(p * stride for p, stride in zip(places, strides, strict=True)), length


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    while len(content):
        written = os.pwrite(descriptor, content, offset)
        content, offset = content[written:], offset + written
