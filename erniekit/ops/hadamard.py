"""Rotation of features by block-diagonal Hadamard matrices, which spreads outliers over their block.

H = H_b / sqrt(b) on the diagonal, H_b of +1 and -1 by Sylvester's construction, so H = H^T = H^-1 and
x W = (x H)(H W): what is quantised are the products' rotated factors, which have no outliers.
"""

from functools import cache

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


def rotate_rows(weight: np.ndarray, size: int) -> np.ndarray:
    """H W of a matrix [..., I, O] in blocks of `size` rows."""
    *lead, rows, columns = weight.shape
    blocks = weight.reshape(*lead, rows // size, size, columns)
    return (hadamard(size) @ blocks).reshape(weight.shape)
