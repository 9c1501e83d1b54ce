"""Parts of parameters, worked by hand, and put together again."""

import numpy as np
import pytest

from erniekit.errors import ConfigError
from erniekit.parallel.placement import split, whole


def test_the_columns_of_a_fused_projection():
    # q of 4 columns, k and v of 2: process 1 of 2 has columns 2-3, 5 and 7.
    placement = split(whole([1, 8]), 1, 1, 2, pieces=[4, 2, 2])
    assert placement.part_shape == (1, 4)
    assert placement.take(np.arange(8).reshape(1, 8)).tolist() == [[2, 3, 5, 7]]
    assert [(start, part.tolist()) for start, part in placement.give(np.array([[20, 30, 50, 70]]))] == [
        ((0, 2), [[20, 30]]),
        ((0, 5), [[50]]),
        ((0, 7), [[70]]),
    ]


@pytest.mark.parametrize("pieces", [None, [8, 4]])
def test_parts_make_the_whole_again(pieces):
    full = np.random.default_rng(0).normal(size=[6, 4, 12])
    again = np.zeros_like(full)
    for row in range(3):
        for column in range(2):
            # Experts over one axis first, then the columns of each.
            placement = split(split(whole(full.shape), 0, row, 3), 2, column, 2, pieces=pieces)
            assert placement.part_shape == (2, 4, 6)
            for start, part in placement.give(placement.take(full)):
                window = tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))
                assert not again[window].any(), "twice"
                again[window] = part
    assert (again == full).all()


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ConfigError, match="3 columns or rows cannot be split over 2 processes"):
        split(whole([7]), 0, 0, 2, pieces=[4, 3])


def test_matrices_one_after_the_other_make_the_same_part():
    full = np.random.default_rng(1).normal(size=[6, 4, 12])
    for rank in range(3):
        placement = split(split(whole(full.shape), 0, rank, 3), 2, 1, 2, pieces=[8, 4])
        np.testing.assert_array_equal(placement.take_matrices(iter(full)), placement.take(full))
