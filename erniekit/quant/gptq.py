"""GPTQ (Frantar et al. 2023): weights of one input after the other, later ones make up for it. No Paddle.

With H = sum of x x^T over the inputs x, the rounding that changes the products least is found row by row of W
[I, O]: with U upper, U^T U = (H + damping)^-1,

    e = (w_i - q(w_i)) / U_ii,    w_j -= U_ij e    for all j > i.

Rows are taken in blocks, and what follows a block makes up for all of it at once. With `act_order` rows of
large inputs come first; scales are found beforehand for all groups, so that the order does not change them.
"""

import numpy as np

from erniekit.ops import ccq, ccq_encode
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import each_row, pack
from erniekit.quant.rtn import Inputs, find_scales, round_to_nearest
from erniekit.quant.schemes import FORMATS
from erniekit.quant.stored import Quantised


def inverse_factor(moment: np.ndarray, damping: float) -> np.ndarray:
    """U, upper, fp64 [I, I]: U^T U is the inverse of the damped moment.

    Args:
        damping: what is added to the diagonal, as a share of its mean.
    """
    return np.linalg.cholesky(np.linalg.inv(_damped(moment, damping))).T


def _damped(moment: np.ndarray, damping: float) -> np.ndarray:
    return moment + np.eye(len(moment)) * (damping * np.trace(moment) / len(moment))


def gptq(
    weight: np.ndarray,
    format: str,
    inputs: Inputs,
    *,
    clip: bool = True,
    rotation: int = 0,
    damping: float = 0.01,
    block_size: int = 128,
    act_order: bool = True,
) -> Quantised:
    """A matrix [I, O] in a format; without inputs it is rounded to nearest.

    Args:
        weight: fp32, rotated already if it is to be; `inputs` alike.
    """
    row = FORMATS[format]
    if not inputs.moment.any():
        return round_to_nearest(weight, format, clip=clip, rotation=rotation)
    if row.number in ccq.NUMBERS:
        codes, scales, columns = ccq_encode.quantise(weight, row.number, _damped(inputs.moment, damping))
        return Quantised(format, weight.shape, codes, scales, columns, rotation=rotation)
    scales = find_scales(weight, format, inputs.importance, clip=clip, rotation=rotation)
    rows = len(weight)
    order = np.argsort(-np.diagonal(inputs.moment), kind="stable") if act_order else np.arange(rows)
    factor = inverse_factor(inputs.moment[np.ix_(order, order)], damping).astype(np.float32)
    wanted = weight[order].copy()
    of_row = each_row(np.where(scales == 0, np.float32(1), scales), rows, row.group)[order]
    codes = np.empty(weight.shape, np.uint8)
    number = NUMBERS[row.number]
    for start in range(0, rows, block_size):
        stop = min(start + block_size, rows)
        errors = np.empty((stop - start, weight.shape[1]), np.float32)
        for at in range(start, stop):
            code = number.to_codes(number.cut(wanted[at] / of_row[at]))
            codes[order[at]] = code
            error = (wanted[at] - number.to_values(code) * of_row[at]) / factor[at, at]
            wanted[at + 1 : stop] -= np.outer(factor[at, at + 1 : stop], error)
            errors[at - start] = error
        wanted[stop:] -= factor[start:stop, stop:].T @ errors
    return Quantised(format, weight.shape, pack(codes, number.bits), scales, rotation=rotation)
