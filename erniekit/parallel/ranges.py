"""A range of the numbers of a parameter, row by row, as what a process holds of it.

Processes with equal copies of a parameter share its state, its gradient or itself evenly, whatever its
shape: each has one range of its numbers. Saving and reading ask for blocks of the whole parameter, and a
range is a few of them: the rest of a row, whole rows, and the beginning of another one, on every axis.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from erniekit.parallel.placement import Placement, Shape


def range_of(size: int, rank: int, count: int) -> tuple[int, int]:
    """First number and end of the range of process `rank` of `count`; those at the end may have less."""
    length = length_of(size, count)
    return min(rank * length, size), min((rank + 1) * length, size)


def length_of(size: int, count: int) -> int:
    """Numbers of the longest range."""
    return -(-size // count)


@dataclass(frozen=True)
class RangePlacement:
    """Numbers `start` to `stop` of the part that `of` places; otherwise as a `Placement`."""

    of: Placement
    start: int
    stop: int
    counted: bool = True

    @property
    def shape(self) -> Shape:
        """Of the whole parameter."""
        return self.of.shape

    @property
    def part_shape(self) -> Shape:
        """Of the tensor that this process holds."""
        return (self.stop - self.start,)

    def take(self, whole: np.ndarray) -> np.ndarray:
        """This process's range of the whole, a copy."""
        return self.of.take(whole).reshape(-1)[self.start : self.stop].copy()

    def give(self, part: np.ndarray) -> Iterator[tuple[Shape, np.ndarray]]:
        """The blocks of this process's range, each with its start in the whole."""
        assert part.shape == self.part_shape, (part.shape, self.part_shape)
        begin = 0
        for first, shape in boxes(self.of.part_shape, self.start, self.stop):
            size = math.prod(shape)
            box = part[begin : begin + size].reshape(shape)
            begin += size
            for block in self.of.blocks:
                low = [max(f, h) for f, h in zip(first, block.here, strict=True)]
                high = [
                    min(f + n, h + m)
                    for f, n, h, m in zip(first, shape, block.here, block.shape, strict=True)
                ]
                if all(a < b for a, b in zip(low, high, strict=True)):
                    inner = tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))
                    place = tuple(s + a - h for s, a, h in zip(block.start, low, block.here, strict=True))
                    yield place, box[inner]


def boxes(shape: Shape, start: int, stop: int) -> Iterator[tuple[Shape, Shape]]:
    """What numbers `start` to `stop` of an array are, in order: first place and shape of boxes of it."""
    if start >= stop:
        return
    if len(shape) <= 1:
        yield (start,) * len(shape), (stop - start,) * len(shape)
        return
    inner = math.prod(shape[1:])
    row, rest = divmod(start, inner)
    last, end = divmod(stop, inner)
    if row == last or (rest and row + 1 == last and not end):
        yield from (((row, *f), (1, *s)) for f, s in boxes(shape[1:], rest, stop - row * inner))
        return
    if rest:
        yield from (((row, *f), (1, *s)) for f, s in boxes(shape[1:], rest, inner))
        row += 1
    if row < last:
        yield (row, *(0,) * (len(shape) - 1)), (last - row, *shape[1:])
    yield from (((last, *f), (1, *s)) for f, s in boxes(shape[1:], 0, end))
