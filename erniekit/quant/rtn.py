"""Rounding to nearest, with scales that are searched: the largest numbers of a group may be cut. No Paddle.

With scale s = r max |w| / largest, r <= 1, what is beyond is cut and everything else lies closer. For every
group the r is taken whose error, weighted by how large the inputs are (their mean squares), is least.
"""

from dataclasses import dataclass

import numpy as np

from erniekit.ops import ccq, ccq_encode
from erniekit.ops.hadamard import rotate_rows
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.ops.number_formats import absmax_scales, each_row, encode
from erniekit.quant.schemes import FORMATS
from erniekit.quant.stored import Quantised, settled

# Parts of the largest number that are tried, of formats that gain by it: evenly spaced values.
_RATIOS = {
    **{"int8": (0.8, 9), "int4": (0.45, 23), "int4_full": (0.45, 23), "int2": (0.2, 41), "nf4": (0.7, 16)}
}


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of a matrix [I, O], from calibration data.

    moment: the sum of x x^T over the rows, fp64 [I, I]. largest: of each feature, fp32 [I]. count: rows.
    sample: some of the rows, fp32 [rows, I].
    """

    moment: np.ndarray
    largest: np.ndarray
    count: int
    sample: np.ndarray

    @property
    def importance(self) -> np.ndarray:
        """Mean square of each feature, fp32 [I]."""
        return (np.diagonal(self.moment) / max(self.count, 1)).astype(np.float32)

    def scaled(self, factors: np.ndarray) -> "Inputs":
        """Of inputs that are divided by a number for each feature."""
        moment = self.moment / np.outer(factors, factors)
        return Inputs(moment, self.largest / factors, self.count, self.sample / factors)

    def rotated(self, size: int) -> "Inputs":
        """Of inputs that are rotated in Hadamard blocks; the largest are those of the sample at least."""
        if not size:
            return self
        moment = rotate_rows(rotate_rows(self.moment.astype(np.float64), size).T, size)
        sample = rotate_rows(np.ascontiguousarray(self.sample.T), size).T
        largest = np.abs(sample).max(0, initial=0.0)
        return Inputs(moment, largest, self.count, sample)


def find_scales(
    weight: np.ndarray,
    format: str,
    importance: np.ndarray | None = None,
    *,
    clip: bool = True,
    rotation: int = 0,
) -> np.ndarray:
    """Scales fp32 [groups, O] of a matrix [I, O], of a format whose numbers are of FORMATS."""
    row = FORMATS[format]
    base = absmax_scales(weight, row.number, row.group, row.outputs, row.scale_type)
    if not clip or row.number not in _RATIOS or row.outputs != 1:
        return settled(base, format, rotation)
    low, number = _RATIOS[row.number]
    best, least = base, np.full(base.shape, np.inf, np.float32)
    ratios = np.linspace(1.0, low, number, dtype=np.float32)
    signs = (1, -1) if NUMBERS[row.number].has_signed_scales else (1,)
    for ratio in (sign * ratio for ratio in ratios for sign in signs):
        tried = settled(base * ratio, format, rotation)
        error = group_errors(weight, tried, format, importance)
        best = np.where(error < least, tried, best)
        least = np.minimum(error, least)
    return best


def group_errors(
    weight: np.ndarray, scales: np.ndarray, format: str, importance: np.ndarray | None
) -> np.ndarray:
    """The weighted square error of each group, [groups, O]."""
    row, rows = FORMATS[format], weight.shape[0]
    number = NUMBERS[row.number]
    divisor = each_row(np.where(scales == 0, np.float32(1), scales), rows, row.group)
    scaled = weight / divisor
    gap = np.square((number.to_values(number.to_codes(number.cut(scaled))) - scaled) * divisor)
    if importance is not None:
        gap *= importance[:, None]
    return np.add.reduceat(gap, np.arange(0, rows, row.group or rows), axis=0)


def round_to_nearest(
    weight: np.ndarray,
    format: str,
    *,
    importance: np.ndarray | None = None,
    clip: bool = True,
    rotation: int = 0,
    scales: np.ndarray | None = None,
) -> Quantised:
    """A matrix [I, O] in a format.

    Args:
        weight: fp32, rotated already if it is to be.
        importance: how much an error of each input counts.
        clip: search the scales; otherwise the largest number of each group is exact.
        rotation: size of the Hadamard blocks.
        scales: [groups, O] to use in place of those that would be found.
    """
    row = FORMATS[format]
    if row.number in ccq.NUMBERS:
        codes, scales, columns = ccq_encode.quantise(weight, row.number, importance=importance)
        return Quantised(format, weight.shape, codes, scales, columns, rotation=rotation)
    if scales is None:
        found = find_scales(weight, format, importance, clip=clip, rotation=rotation)
    else:
        found = settled(scales, format, rotation)
    return Quantised(
        format, weight.shape, encode(weight, found, row.number, row.group), found, rotation=rotation
    )


def output_error(weight: np.ndarray, matrix: Quantised, moment: np.ndarray | None) -> float:
    """The square of x (W' - W) over that of x W, of all rows x behind a moment; of W alone without one."""
    gap = (matrix.numbers() - weight).astype(np.float64)
    wide = weight.astype(np.float64)
    if moment is None or not moment.any():
        return float(np.square(gap).sum() / max(np.square(wide).sum(), 1e-300))
    return float((gap * (moment @ gap)).sum() / max(float((wide * (moment @ wide)).sum()), 1e-300))
