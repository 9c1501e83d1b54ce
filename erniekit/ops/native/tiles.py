"""Numbers of few bits, tile by tile, on the native kernels."""

from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import replace
from typing import Any

import numpy as np
import paddle

from erniekit.ops.kernels import library
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty
from erniekit.ops.tiles import (
    LARGEST,
    Codes,
    Counts,
    Grid,
    decode_reference,
    encode_reference,
    rounded_reference,
    scales_of_reference,
    whole_bounds,
)

_FORMATS = {"e4m3": 0, "e5m2": 1, "int8": 2, "int4": 2}
# Of `tiles.cpp`: rows of a piece.
_PIECE = 64
_EXACT, _POWER_OF_TWO, _GIVEN = 0, 1, 2


def rounded_native(
    x_MN: paddle.Tensor,
    grid: Grid,
    *,
    bounds: Any = None,
    scales: paddle.Tensor | None = None,
    counts: Counts | None = None,
) -> paddle.Tensor:
    """As `rounded_reference`, which also serves other types."""
    if not takes(x_MN):
        return rounded_reference(x_MN, grid, bounds=bounds, scales=scales, counts=counts)
    out = empty(x_MN.shape, dtype=x_MN.dtype)
    _run(x_MN, grid, bounds, scales, counts, numbers=out)
    return out


def encode_native(
    x_MN: paddle.Tensor,
    grid: Grid,
    *,
    bounds: Any = None,
    scales: paddle.Tensor | None = None,
    counts: Counts | None = None,
) -> Codes:
    """As `encode_reference`, which also serves other types."""
    if not takes(x_MN):
        return encode_reference(x_MN, grid, bounds=bounds, scales=scales, counts=counts)
    codes = empty(x_MN.shape, dtype="uint8")
    bounds = whole_bounds(x_MN) if bounds is None else bounds
    scales = _run(x_MN, grid, bounds, scales, counts, codes=codes)
    return Codes(codes, scales, grid, bounds, x_MN.dtype)


def scales_of_native(x_MN: paddle.Tensor, grid: Grid, *, bounds: Any = None) -> paddle.Tensor:
    """As `scales_of_reference`, which also serves other types."""
    if not takes(x_MN):
        return scales_of_reference(x_MN, grid, bounds=bounds)
    return _run(x_MN, grid, bounds, None, None)


def decode_native(codes: Codes) -> paddle.Tensor:
    """As `decode_reference`, which also serves other types."""
    if codes.dtype not in TYPES:
        return decode_reference(codes)
    out = empty(codes.codes.shape, dtype=codes.dtype)
    bounds = np.ascontiguousarray(codes.bounds, np.int64)
    rows, columns = _tile(codes.grid, codes.codes, bounds)
    signature = (c_int, c_int, c_long, c_void_p, c_long, c_long, c_long, c_void_p, c_void_p, c_void_p)
    library.load().declare("ek_tile_numbers", *signature)(
        *(TYPES[codes.dtype], _FORMATS[codes.grid.format], len(bounds) - 1, bounds.ctypes.data),
        *(out.shape[1], rows, columns),
        *(codes.codes.data_ptr(), codes.scales.data_ptr(), out.data_ptr()),
    )
    return out


def _tile(grid: Grid, x_MN: paddle.Tensor, bounds: np.ndarray) -> tuple[int, int]:
    """The tile, so high that it can be cut in pieces where it is all of a group."""
    rows, columns = grid.tile(x_MN, bounds)
    return (rows if grid.rows else -(-rows // _PIECE) * _PIECE), columns


def _run(
    x_MN: paddle.Tensor,
    grid: Grid,
    bounds: Any,
    scales: paddle.Tensor | None,
    counts: Counts | None,
    *,
    numbers: paddle.Tensor | None = None,
    codes: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """Round into `numbers`, `codes`, or neither; returns the scales."""
    if scales is None and grid.rows is None and grid.columns is None and counts is None:
        # Over a whole matrix tasks are few: columns first, whose largest scale is that of all.
        by_column = _run(x_MN, replace(grid, columns=1), bounds, None, None)
        scales = by_column.max(-1, keepdim=True)
        if numbers is None and codes is None:
            return scales
    x_MN = contiguous(x_MN)
    bounds = np.ascontiguousarray(whole_bounds(x_MN) if bounds is None else bounds, np.int64)
    rows, columns = _tile(grid, x_MN, bounds)
    kind = _GIVEN if scales is not None else _POWER_OF_TWO if grid.power_of_two else _EXACT
    if scales is None:
        down = int((-(-(bounds[1:] - bounds[:-1]) // rows)).sum())
        scales = empty([down, -(-x_MN.shape[1] // columns)], dtype="float32")
    if counts is not None:
        counts.total += x_MN.size
    signature = (
        *(c_int, c_int, c_float, c_int, c_long, c_void_p, c_long, c_long, c_long),
        *(c_void_p, c_void_p, c_void_p, c_void_p, c_void_p),
    )
    library.load().declare("ek_round_tiles", *signature)(
        *(TYPES[x_MN.dtype], _FORMATS[grid.format], LARGEST[grid.format], kind),
        *(len(bounds) - 1, bounds.ctypes.data, x_MN.shape[1], rows, columns),
        *(x_MN.data_ptr(), None if numbers is None else numbers.data_ptr()),
        *(None if codes is None else codes.data_ptr(), scales.data_ptr()),
        None if counts is None else counts.lost_and_cut.data_ptr(),
    )
    return scales
