"""Numbers of few bits, tile by tile, as arithmetic in low precision sees them.

A tile of a matrix has one scale s; a number x of it becomes the nearest number of a format to x / s, times s:

    s = max |x| / largest,    or with `power_of_two` the least power of two that is not below it
    x' = value(code) s        in fp32, rounded once to the type of x

With powers of two x' of FP8 is exact in bf16, so a product of such numbers in bf16 with sums in fp32 is the
product of the bytes. Of bf16 and fp32 inputs no number is beyond the largest unless scales are given.

| format | numbers |
|---|---|
| e4m3 | FP8 with 3 bits of mantissa, up to 448 |
| e5m2 | FP8 with 2 bits of mantissa, up to 57344 |
| int8, int4 | whole numbers -127 ... 127, -7 ... 7 |

    M rows, N columns, G groups of rows (experts), which no tile reaches over
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle

from erniekit.ops.backend import choose

LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "int8": 127.0, "int4": 7.0}
FLOAT8 = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}


@dataclass(frozen=True)
class Grid:
    """A format and the tiles that share a scale.

    Args:
        rows, columns: of a tile; None for all of a group.
    """

    format: str
    rows: int | None
    columns: int | None
    power_of_two: bool = False

    def tile(self, x_MN: Any, bounds: Any) -> tuple[int, int]:
        """Rows and columns of a tile of a matrix."""
        rows = self.rows or max(1, *(int(b) for b in bounds[1:] - bounds[:-1]))
        return rows, self.columns or max(1, x_MN.shape[1])


@dataclass(frozen=True)
class Codes:
    """A matrix as bytes [M, N] and scales [tiles of rows, tiles of columns]."""

    codes: paddle.Tensor
    scales: paddle.Tensor
    grid: Grid
    bounds: Any
    dtype: Any


class Counts:
    """How many numbers were rounded, became zero though they were not, and were beyond the largest."""

    def __init__(self) -> None:
        self.lost_and_cut = paddle.zeros([2], dtype="int64")
        self.total = 0

    def take(self) -> tuple[int, int, int]:
        """(total, lost, cut) since the last call."""
        lost, cut = self.lost_and_cut.tolist()
        found = self.total, lost, cut
        self.total = 0
        self.lost_and_cut = paddle.zeros([2], dtype="int64")
        return found


def rounded(
    x_MN: paddle.Tensor,
    grid: Grid,
    *,
    bounds: Any = None,
    scales: paddle.Tensor | None = None,
    counts: Counts | None = None,
) -> paddle.Tensor:
    """x', in the type of x; no graph is made.

    Args:
        bounds: int64 [G + 1], a NumPy array: first rows of the groups, and M. None for one group.
        scales: fp32 [tiles of rows, tiles of columns] to use in place of the tiles' own.
    """
    return choose("rounded")(x_MN, grid, bounds=bounds, scales=scales, counts=counts)


def encode(
    x_MN: paddle.Tensor,
    grid: Grid,
    *,
    bounds: Any = None,
    scales: paddle.Tensor | None = None,
    counts: Counts | None = None,
) -> Codes:
    """x as bytes, of which `decode` gives what `rounded` does."""
    return choose("encode")(x_MN, grid, bounds=bounds, scales=scales, counts=counts)


def decode(codes: Codes) -> paddle.Tensor:
    """The numbers that the bytes stand for, in the type that was encoded."""
    return choose("decode")(codes)


def scales_of(x_MN: paddle.Tensor, grid: Grid, *, bounds: Any = None) -> paddle.Tensor:
    """The scale of every tile."""
    return choose("scales_of")(x_MN, grid, bounds=bounds)


@paddle.no_grad()
def scales_of_reference(x_MN: paddle.Tensor, grid: Grid, *, bounds: Any = None) -> paddle.Tensor:
    """`scales_of` by Paddle's operators."""
    bounds = whole_bounds(x_MN) if bounds is None else bounds
    rows, columns = grid.tile(x_MN, bounds)
    largest = LARGEST[grid.format]
    found = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        if stop > start:
            part = _padded(x_MN[int(start) : int(stop)].astype("float32").abs(), rows, columns)
            found.append(part.reshape([part.shape[0] // rows, rows, -1, columns]).max(axis=[1, 3]))
    if not found:
        return paddle.zeros([0, -(-x_MN.shape[1] // columns)])
    amax = paddle.concat(found)
    return _power_of_two(amax, largest) if grid.power_of_two else amax / largest


@paddle.no_grad()
def rounded_reference(
    x_MN: paddle.Tensor,
    grid: Grid,
    *,
    bounds: Any = None,
    scales: paddle.Tensor | None = None,
    counts: Counts | None = None,
) -> paddle.Tensor:
    """`rounded` by Paddle's operators."""
    return decode_reference(encode_reference(x_MN, grid, bounds=bounds, scales=scales, counts=counts))


@paddle.no_grad()
def encode_reference(
    x_MN: paddle.Tensor,
    grid: Grid,
    *,
    bounds: Any = None,
    scales: paddle.Tensor | None = None,
    counts: Counts | None = None,
) -> Codes:
    """`encode` by Paddle's operators."""
    bounds = whole_bounds(x_MN) if bounds is None else bounds
    given, scales = scales, scales_of_reference(x_MN, grid, bounds=bounds) if scales is None else scales
    wide, largest = x_MN.astype("float32"), LARGEST[grid.format]
    scaled = wide / _each(scales, grid, x_MN, bounds)
    cut = paddle.clip(scaled, -largest, largest)
    if grid.format in FLOAT8:
        values = cut.astype(FLOAT8[grid.format])
        codes = values.view("uint8")
        values = values.astype("float32")
    else:
        values = paddle.round(cut)
        codes = values.astype("int8").view("uint8")
    if counts is not None:
        counts.total += x_MN.size
        lost = ((values == 0) & (wide != 0)).sum()
        cut_off = (scaled.abs() > largest).sum() if given is not None else paddle.zeros([], dtype="int64")
        counts.lost_and_cut += paddle.stack([lost, cut_off])
    return Codes(codes, scales, grid, bounds, x_MN.dtype)


@paddle.no_grad()
def decode_reference(codes: Codes) -> paddle.Tensor:
    """`decode` by Paddle's operators."""
    if codes.grid.format in FLOAT8:
        values = codes.codes.view(FLOAT8[codes.grid.format]).astype("float32")
    else:
        values = codes.codes.view("int8").astype("float32")
    return (values * _each(codes.scales, codes.grid, codes.codes, codes.bounds)).astype(codes.dtype)


def whole_bounds(x_MN: paddle.Tensor) -> np.ndarray:
    """Bounds of one group."""
    return np.array([0, x_MN.shape[0]], np.int64)


def _padded(x_MN: paddle.Tensor, rows: int, columns: int) -> paddle.Tensor:
    below, beside = -x_MN.shape[0] % rows, -x_MN.shape[1] % columns
    return paddle.nn.functional.pad(x_MN, [0, below, 0, beside]) if below or beside else x_MN


def _each(scales: paddle.Tensor, grid: Grid, x_MN: paddle.Tensor, bounds: np.ndarray) -> paddle.Tensor:
    """The scale of every number [M, N]; 1 where a tile is zeros."""
    rows, columns = grid.tile(x_MN, bounds)
    tiles, place = [], 0
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        tiles.append(place + np.arange(stop - start) // rows)
        place += -(-int(stop - start) // rows)
    down = paddle.to_tensor(np.concatenate(tiles), dtype="int64")
    across = paddle.to_tensor(np.arange(x_MN.shape[1]) // columns, dtype="int64")
    each = paddle.gather(paddle.gather(scales, down, axis=0), across, axis=1)
    return paddle.where(each == 0, paddle.ones_like(each), each)


def _power_of_two(amax: paddle.Tensor, largest: float) -> paddle.Tensor:
    # In fp64 the quotient is no power of two by rounding.
    exponent = paddle.ceil(paddle.log2(paddle.clip(amax.astype("float64"), 2.0**-140) / largest))
    found = (2.0 ** paddle.clip(exponent, -100.0)).astype("float32")
    found = paddle.where(amax == 0, paddle.ones_like(found), found)
    return paddle.where(paddle.isfinite(amax), found, amax - amax)
