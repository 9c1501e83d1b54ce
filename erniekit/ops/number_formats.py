"""Numbers of few bits: values to codes and back, codes into bytes and back. No Paddle.

A matrix W [I, O] is cut along I into groups of rows, and each column of a group has one scale s in fp32
(or in bf16, to the nearest):

    s = max |w| / largest,    code = the code whose value is nearest to w / s,    w' = value(code) s

so |w - w'| <= gap s / 2, `gap` being the widest space between neighbouring values. A group may be all
rows ("per channel"), and several columns, or all, may share a scale ("per block", "per tensor"). For values
spread evenly over a space the mean square of the error is (gap s)^2 / 12. Where one end of the values is
farther from zero, `largest` is that end, with its sign, and so is the number of a group that is farthest from
zero: scales have signs, and what lies just as far on the other side is cut by a gap.

| format | bits | values | largest | gap |
|---|---|---|---|---|
| int8 | 8 | -127 ... 127 | 127 | 1 |
| int4 | 4 | -7 ... 7 | 7 | 1 |
| int4_full | 4 | -8 ... 7 | -8 | 1 |
| int2 | 2 | -1.5, -0.5, 0.5, 1.5 | 1.5 | 1 |
| nf4 | 4 | 16 quantiles of the normal distribution (Dettmers et al. 2023) | 1 | 0.304 |
| e4m3 | 8 | those of FP8 (`fp8.py`) | 448 | 32 |

Codes of 4 bits lie in pairs: rows 2r and 2r + 1 of a column in the low and the high half of a byte; codes
of 2 bits in fours, the first row in the lowest bits. Codes that are no numbers of their own are those of
`ccq.py`, which have the same functions here.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from erniekit.ops.fp8 import E4M3

# Numbers that are in fp32 at once while a matrix is quantised.
_BLOCK = 1 << 18

# The 4-bit NormalFloat: quantiles of N(0, 1) scaled to [-1, 1], with an exact zero.
NF4_VALUES = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_NF4 = np.array(NF4_VALUES, np.float32)
_NF4_MIDDLES = (_NF4[1:] + _NF4[:-1]) / 2
_INT4_ZERO = 8


@dataclass(frozen=True)
class NumberFormat:
    """A number format: its size, its largest value, and the functions between scaled values and codes.

    to_codes: fp32 within the ends -> uint8 codes. to_values: uint8 codes -> fp32. other: the end opposite to
    the largest value, where it is not its negative.
    """

    bits: int
    largest: float
    gap: float
    to_codes: Callable[[np.ndarray], np.ndarray]
    to_values: Callable[[np.ndarray], np.ndarray]
    other: float | None = None

    @property
    def has_signed_scales(self) -> bool:
        """Whether the number of a group that is farthest from zero has to become one of the ends."""
        return self.other is not None

    def cut(self, scaled: np.ndarray) -> np.ndarray:
        """Scaled values, those beyond the ends cut to them."""
        other = -self.largest if self.other is None else self.other
        return np.clip(scaled, min(self.largest, other), max(self.largest, other))

    def table(self) -> np.ndarray:
        """The value of every code, fp32."""
        return self.to_values(np.arange(1 << self.bits, dtype=np.uint8))


def _int8_codes(scaled: np.ndarray) -> np.ndarray:
    return np.rint(scaled).astype(np.int8).view(np.uint8)


def _int8_values(codes: np.ndarray) -> np.ndarray:
    return codes.view(np.int8).astype(np.float32)


def _int4_codes(scaled: np.ndarray) -> np.ndarray:
    return (np.rint(scaled) + _INT4_ZERO).astype(np.uint8)


def _int4_values(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.float32) - _INT4_ZERO


def _nf4_codes(scaled: np.ndarray) -> np.ndarray:
    return np.searchsorted(_NF4_MIDDLES, scaled).astype(np.uint8)


def _nf4_values(codes: np.ndarray) -> np.ndarray:
    return _NF4[codes]


def _int2_codes(scaled: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(scaled) + 2, 0, 3).astype(np.uint8)


def _int2_values(codes: np.ndarray) -> np.ndarray:
    return codes.astype(np.float32) - np.float32(1.5)


FORMATS: dict[str, NumberFormat] = {
    "int8": NumberFormat(8, 127.0, 1.0, _int8_codes, _int8_values),
    "int4": NumberFormat(4, 7.0, 1.0, _int4_codes, _int4_values),
    "int4_full": NumberFormat(4, -8.0, 1.0, _int4_codes, _int4_values, other=7.0),
    "int2": NumberFormat(2, 1.5, 1.0, _int2_codes, _int2_values),
    "e4m3": NumberFormat(8, 448.0, 32.0, E4M3.codes, E4M3.values),
    "nf4": NumberFormat(4, 1.0, float(np.diff(_NF4).max()), _nf4_codes, _nf4_values),
}


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """uint8 codes [..., I, O] as kept bytes: themselves, or [..., ceil(I bits / 8), O]."""
    if bits == 8:
        return codes
    each = 8 // bits
    missing = -codes.shape[-2] % each
    if missing:
        zeros = np.zeros((*codes.shape[:-2], missing, codes.shape[-1]), np.uint8)
        codes = np.concatenate([codes, zeros], axis=-2)
    packed = codes[..., ::each, :].copy()
    for place in range(1, each):
        packed |= codes[..., place::each, :] << (bits * place)
    return packed


def unpack(packed: np.ndarray, bits: int, rows: int) -> np.ndarray:
    """The codes [..., rows, O] that `pack` was given."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    parts = np.stack([packed >> shift & mask for shift in range(0, 8, bits)], axis=-2)
    return parts.reshape(*packed.shape[:-2], -1, packed.shape[-1])[..., :rows, :]


def packed_shape(shape: tuple[int, ...], bits: int) -> tuple[int, ...]:
    """The shape of `pack` of codes of a shape."""
    *lead, rows, columns = shape
    return (*lead, -(-rows * bits // 8), columns)


def scales_shape(shape: tuple[int, ...], group: int | None) -> tuple[int, ...]:
    """The shape of the scales of a matrix [..., I, O]."""
    *lead, rows, columns = shape
    return (*lead, -(-rows // (group or rows)), columns)


def quantise(
    weight: Any, number: str, group: int | None, outputs: int | None = 1, scale_type: str = "fp32"
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of a matrix.

    Args:
        weight: [..., I, O], fp32, or bf16 as uint16.
        number: a row of FORMATS.
        group: rows that share a scale; None for all.
        outputs: columns that share a scale; None for all.
        scale_type: fp32, or bf16, to which scales are rounded.

    Returns:
        Packed codes, uint8 [..., ceil(I bits / 8), O], and scales, fp32 [..., groups, O].
    """
    scales = absmax_scales(weight, number, group, outputs, scale_type)
    return encode(weight, scales, number, group), scales


def absmax_scales(
    weight: Any, number: str, group: int | None, outputs: int | None = 1, scale_type: str = "fp32"
) -> np.ndarray:
    """The scales [..., groups, O] by which the largest number of each group is exact, but for their type."""
    shape = tuple(weight.shape)
    scales = np.empty(scales_shape(shape, group), np.float32)
    starts = np.arange(0, shape[-2], group or shape[-2])
    signed = FORMATS[number].has_signed_scales
    assert not signed or outputs == 1, f"columns of {number} share no scale"
    for columns in _blocks(shape):
        wide = widened(weight[columns])
        scales[columns] = np.maximum.reduceat(np.abs(wide), starts, axis=0)
        if signed:
            least = np.minimum.reduceat(wide, starts, axis=0)
            scales[columns] = np.where(-least == scales[columns], least, scales[columns])
    if outputs != 1:
        first = np.arange(0, shape[-1], outputs or shape[-1])
        shared = np.maximum.reduceat(scales, first, axis=-1)
        scales = np.repeat(shared, outputs or shape[-1], axis=-1)[..., : shape[-1]]
    scales /= np.float32(FORMATS[number].largest)
    return widened(narrowed(scales)) if scale_type == "bf16" else scales


def encode(weight: Any, scales: np.ndarray, number: str, group: int | None) -> np.ndarray:
    """The packed codes of a matrix whose scales are given; what is beyond the largest value is cut to it."""
    shape = tuple(weight.shape)
    chosen = FORMATS[number]
    packed = np.empty(packed_shape(shape, chosen.bits), np.uint8)
    for columns in _blocks(shape):
        divisor = np.where(scales[columns] == 0, np.float32(1), scales[columns])
        scaled = widened(weight[columns]) / each_row(divisor, shape[-2], group)
        packed[columns] = pack(chosen.to_codes(chosen.cut(scaled)), chosen.bits)
    return packed


def _blocks(shape: tuple[int, ...]) -> Iterator[tuple[Any, ...]]:
    """Some columns of one matrix at a time; columns are independent of each other."""
    width = max(1, _BLOCK // shape[-2])
    for matrix in np.ndindex(*shape[:-2]):
        for start in range(0, shape[-1], width):
            yield (*matrix, slice(None), slice(start, start + width))


def dequantise(
    packed: np.ndarray, scales: np.ndarray, number: str, group: int | None, rows: int
) -> np.ndarray:
    """The numbers, fp32 [..., rows, O], that codes and scales stand for."""
    chosen = FORMATS[number]
    values = chosen.to_values(unpack(packed, chosen.bits, rows))
    return values * each_row(scales, rows, group)


def each_row(scales: np.ndarray, rows: int, group: int | None) -> np.ndarray:
    """Scales [..., groups, O] repeated for every row."""
    return np.repeat(scales, group or rows, axis=-2)[..., :rows, :]


def narrowed(values: np.ndarray) -> np.ndarray:
    """bf16 as uint16 of finite numbers, to nearest, ties to even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    # Adding 0x7fff and the lowest kept bit rounds so.
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def widened(raw: np.ndarray) -> np.ndarray:
    """fp32 of raw bits: fp32 itself, or bf16 as uint16."""
    if raw.dtype == np.uint16:
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)
