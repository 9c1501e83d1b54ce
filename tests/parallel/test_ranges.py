"""Ranges of numbers: even, and blocks of the whole parameter that cover each number once."""

import numpy as np
import pytest

from erniekit.parallel.placement import split, whole
from erniekit.parallel.ranges import RangePlacement, boxes, range_of

SHAPES = [(7,), (5, 3), (4, 3, 2), (2, 6), (1, 1, 5), (1,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_are_the_numbers_of_a_range_in_order(shape):
    array = np.arange(np.prod(shape)).reshape(shape)
    for start in range(array.size + 1):
        for stop in range(start, array.size + 1):
            found = [
                array[tuple(slice(f, f + n) for f, n in zip(first, size, strict=True))].ravel()
                for first, size in boxes(shape, start, stop)
            ]
            assert np.concatenate([np.empty(0, int), *found]).tolist() == list(range(start, stop))
            assert len(found) <= 2 * len(shape) - 1


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_ranges_are_even_and_everything(shape, count):
    size = int(np.prod(shape))
    ranges = [range_of(size, rank, count) for rank in range(count)]
    assert [number for start, stop in ranges for number in range(start, stop)] == list(range(size))
    assert max(stop - start for start, stop in ranges) == -(-size // count)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_what_all_give_is_the_whole_also_where_it_is_split_in_pieces(count):
    array = np.random.default_rng(0).normal(size=(6, 12, 8))
    placed = [split(whole(array.shape), 2, index, 2, pieces=(2, 6)) for index in range(2)]
    built = np.zeros_like(array)
    seen = np.zeros(array.shape, int)
    for of in placed:
        size = int(np.prod(of.part_shape))
        for rank in range(count):
            one = RangePlacement(of, *range_of(size, rank, count))
            part = one.take(array)
            assert part.shape == one.part_shape and one.shape == array.shape
            for start, block in one.give(part):
                window = tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))
                built[window] = block
                seen[window] += 1
    assert (seen == 1).all() and (built == array).all()
