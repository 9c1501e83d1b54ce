"""Which part of each parameter a process holds, as data.

A parameter that is split over processes lies in each of them as one tensor made of blocks of the
whole one: of a fused [q | k | v] the columns of some heads are three blocks. Reading, saving and
counting need no more than these blocks and who answers for them, so they are the same for every way
to split, and what was saved under one plan is read under any other.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from erniekit.errors import ConfigError

Shape = tuple[int, ...]
Item = tuple[str, str, np.ndarray]


@dataclass(frozen=True)
class Block:
    """`shape` numbers at `here` of the part and at `start` of the whole."""

    here: Shape
    start: Shape
    shape: Shape


@dataclass(frozen=True)
class Placement:
    """A process's part of a parameter.

    shape: of the whole parameter. blocks: those that are here. counted: whether this process is the one
    that saves these blocks and counts their gradients, of all those that hold them.
    """

    shape: Shape
    blocks: tuple[Block, ...]
    counted: bool = True

    @property
    def part_shape(self) -> Shape:
        """Of the tensor that this process holds."""
        ends = [[h + n for h, n in zip(block.here, block.shape, strict=True)] for block in self.blocks]
        return tuple(max(axis) for axis in zip(*ends, strict=True))

    def take(self, whole: np.ndarray) -> np.ndarray:
        """This process's part of the whole, a copy."""
        assert whole.shape == self.shape, (whole.shape, self.shape)
        part = np.empty(self.part_shape, whole.dtype)
        for block in self.blocks:
            part[_window(block.here, block.shape)] = whole[_window(block.start, block.shape)]
        return part

    def take_matrices(self, matrices: Iterable[np.ndarray]) -> np.ndarray:
        """This process's part of a whole that comes one number of its first axis at a time."""
        part: np.ndarray | None = None
        for index, matrix in enumerate(matrices):
            part = np.empty(self.part_shape, matrix.dtype) if part is None else part
            for block in self.blocks:
                place = index - block.start[0]
                if 0 <= place < block.shape[0]:
                    taken = matrix[_window(block.start[1:], block.shape[1:])]
                    part[block.here[0] + place][_window(block.here[1:], block.shape[1:])] = taken
        assert part is not None, "a parameter without a matrix"
        return part

    def give(self, part: np.ndarray) -> Iterator[tuple[Shape, np.ndarray]]:
        """The blocks of this process's part, each with its start in the whole."""
        assert part.shape == self.part_shape, (part.shape, self.part_shape)
        for block in self.blocks:
            yield block.start, part[_window(block.here, block.shape)]


def whole(shape: Sequence[int], *, counted: bool = True) -> Placement:
    """All of a parameter."""
    shape = tuple(shape)
    none = (0,) * len(shape)
    return Placement(shape, (Block(none, none, shape),), counted)


def split(
    placement: Placement, axis: int, index: int, count: int, *, pieces: Sequence[int] | None = None
) -> Placement:
    """Part `index` of `count` equal ones along an axis of a parameter that is in one block so far.

    Args:
        pieces: sizes of what is fused along the axis, each of which is split for itself; None for one.

    Raises:
        ConfigError: a piece is not divisible.
    """
    (block,) = placement.blocks
    size = block.shape[axis]
    pieces = [size] if pieces is None else list(pieces)
    assert sum(pieces) == size, (pieces, size)
    blocks, here, begin = [], 0, 0
    for piece in pieces:
        if piece % count:
            raise ConfigError(f"{piece} columns or rows cannot be split over {count} processes")
        length = piece // count
        blocks.append(
            Block(
                _replaced(block.here, axis, block.here[axis] + here),
                _replaced(block.start, axis, block.start[axis] + begin + index * length),
                _replaced(block.shape, axis, length),
            )
        )
        here, begin = here + length, begin + piece
    return Placement(placement.shape, tuple(blocks), placement.counted)


def placed_items(items: Iterable[Item], placements: Mapping[str, Placement]) -> Iterator[Item]:
    """Of whole parameters (name, dtype word, raw bits) what this process holds of those that it has."""
    for name, word, array in items:
        if name in placements:
            yield name, word, placements[name].take(array)


def _window(start: Shape, shape: Shape) -> tuple[slice, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))


def _replaced(values: Shape, axis: int, value: int) -> Shape:
    changed = list(values)
    changed[axis] = value
    return tuple(changed)
