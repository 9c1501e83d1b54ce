"""Rotation of features by block-diagonal Hadamard matrices, which spreads outliers over their block.

H = H_b / sqrt(b) on the diagonal, H_b of +1 and -1 by Sylvester's construction, so H = H^T = H^-1 and
x W = (x H)(H W): what is quantised are the products' rotated factors, which have no outliers.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np


@cache
def hadamard(size: int) -> np.ndarray:
    """The normalised Hadamard matrix of a power of two, fp32."""
    assert size > 0 and size & (size - 1) == 0, size
    matrix = np.ones((1, 1), np.float32)
    while matrix.shape[0] < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))


def fitting_block(features: int, size: int) -> int:
    """The largest power of two up to `size` that divides a number of features."""
    while features % size:
        size //= 2
    return size


def rotate_rows(weight: Any, size: int, stack: Callable[..., Any] = np.stack) -> Any:
    """H W of a matrix [..., I, O] in blocks of `size` rows.

    By sums and differences in a fixed order, so the result is the same to the last bit wherever it is made.

    Args:
        weight: an array, or with `stack` of Paddle one of its tensors.
    """
    shape, half = weight.shape, 1
    while half < size:
        pairs = weight.reshape([-1, 2, half, shape[-1]])
        weight = stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        half *= 2
    return (weight * float(np.float32(1 / np.sqrt(size)))).reshape(shape)
