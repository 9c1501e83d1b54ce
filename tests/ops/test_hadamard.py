"""Rotation by Hadamard matrices."""

import numpy as np

from erniekit.ops.hadamard import fitting_block, hadamard, rotate_rows


def test_it_is_its_own_inverse_and_of_ones():
    np.testing.assert_allclose(
        hadamard(4) * 2, [[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]
    )
    for size in (1, 2, 32, 128):
        np.testing.assert_allclose(hadamard(size) @ hadamard(size), np.eye(size), atol=1e-6)


def test_blocks_divide_the_features():
    assert [fitting_block(features, 128) for features in (576, 1536, 48, 7)] == [64, 128, 16, 1]


def test_rows_turn_block_by_block_and_an_outlier_spreads():
    weight = np.random.default_rng(0).normal(size=(2, 8, 3)).astype(np.float32)
    found = rotate_rows(weight, 4)
    np.testing.assert_allclose(found[1, 4:], hadamard(4) @ weight[1, 4:], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(rotate_rows(found, 4), weight, atol=1e-6)
    np.testing.assert_allclose(
        rotate_rows(np.array([[8.0], [0], [0], [0]], np.float32), 4), np.full((4, 1), 4)
    )
