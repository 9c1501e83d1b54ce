"""Products of FP8 matrices as they are, bytes and scales, on a GPU that multiplies them.

Paddle has one product, of cuBLAS: out [M, N] = a [M, K] b [N, K]^T, both in FP8, with sums in fp32. It wants
scales of tiles 1 x 128 of [M, K] as [K / 128, M], and of blocks 128 x 128 of [N, K] as [N / 128, K / 128].

| product | a | b |
|---|---|---|
| y = x W | x, tiles 1 x 128 | W^T, blocks |
| dx = g W^T | g, tiles 1 x 128 | W, blocks |
| dW = x^T g | x^T, tiles of 128 tokens | g^T, tiles of 128 tokens |

Sides that 128 does not divide are filled with zeros, which change no sum. Experts are multiplied one by one.
Nothing here has been executed on a GPU; tests stand in for the product.

    M rows, K, N features, E experts
"""

from functools import partial

import numpy as np
import paddle
import paddle.incubate.nn.functional as F

from erniekit.ops import gradients
from erniekit.ops.products import product_reference, weight_gradient_reference
from erniekit.ops.tiles import FLOAT8, Codes, decode

TILE = 128


def product_of_codes_reference(
    x: Codes,
    weight: Codes,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """`products.product` of bytes, by the numbers they stand for."""
    return product_reference(decode(x), _stacked(weight, offsets), bias=bias, offsets=offsets, turned=turned)


def gradient_of_codes_reference(
    parameter: paddle.Tensor, x: Codes, grad: Codes, *, offsets: paddle.Tensor | None = None
) -> paddle.Tensor | None:
    """`products.weight_gradient` of bytes, by the numbers they stand for."""
    return weight_gradient_reference(parameter, decode(x), decode(grad), offsets=offsets)


@paddle.no_grad()
def product_of_codes_gpu(
    x: Codes,
    weight: Codes,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """The same by Paddle's block-wise product (GPU only; not executed in this project's CI)."""
    inner, columns = weight.codes.shape[0] // len(weight.bounds[1:]), weight.codes.shape[1]
    wanted = inner if turned else columns
    parts = [
        _multiply(_factor(x, group), _factor(weight, group, turned=not turned), x.dtype)[:rows, :wanted]
        for group, rows in enumerate(np.diff(x.bounds).tolist())
        if rows
    ]
    if not parts:
        return paddle.zeros([0, wanted], dtype=x.dtype)
    y = paddle.concat(parts) if len(parts) > 1 else parts[0]
    return y if bias is None else y + bias


@paddle.no_grad()
def gradient_of_codes_gpu(
    parameter: paddle.Tensor, x: Codes, grad: Codes, *, offsets: paddle.Tensor | None = None
) -> paddle.Tensor | None:
    """The same by Paddle's block-wise product (GPU only; not executed in this project's CI)."""
    return gradients.contribute(parameter, partial(_add_gradient, x, grad, offsets is not None))


@paddle.no_grad()
def _add_gradient(x: Codes, grad: Codes, stacked: bool, parameter: paddle.Tensor) -> paddle.Tensor:
    written, factor = gradients.target(parameter)
    if factor == 0.0:
        written.zero_()
    for group, rows in enumerate(np.diff(x.bounds).tolist()):
        if rows:
            own = _multiply(_factor(x, group, turned=True), _factor(grad, group, turned=True), "float32")
            own = own[: x.codes.shape[1], : grad.codes.shape[1]]
            if stacked:
                written[group] = written[group] + own
            else:
                written.add_(own)
    return written


def _multiply(a: "_Factor", b: "_Factor", dtype: paddle.dtype | str) -> paddle.Tensor:
    """a b^T."""
    return F.fp8_gemm_blockwise(
        a[0],
        a[1],
        b[0],
        b[1],
        paddle.float32 if dtype == "float32" else dtype,
        is_a_1d_scaled=a[2],
        is_b_1d_scaled=b[2],
    )


# FP8 numbers, their scales as the product wants them, and whether those are of tiles 1 x 128.
_Factor = tuple[paddle.Tensor, paddle.Tensor, bool]


def _factor(codes: Codes, group: int, *, turned: bool = False) -> _Factor:
    """A group of rows, or its transpose."""
    bounds, rows = codes.bounds, codes.grid.rows
    assert rows is not None, "tiles of FP8 have a number of rows"
    tiles = np.concatenate([[0], np.cumsum(-(-np.diff(bounds) // rows))])
    numbers = codes.codes[int(bounds[group]) : int(bounds[group + 1])]
    scales = codes.scales[int(tiles[group]) : int(tiles[group + 1])]
    if turned:
        numbers, scales = numbers.T, scales.T
    tiled = 1 in (rows, codes.grid.columns)
    if tiled:
        scales = _filled(scales, beside=False).T
    return _filled(numbers).contiguous().view(FLOAT8[codes.grid.format]), scales.contiguous(), tiled


def _filled(x_MN: paddle.Tensor, *, beside: bool = True) -> paddle.Tensor:
    """With zeros below, and beside, up to a multiple of 128."""
    below, right = -x_MN.shape[0] % TILE, -x_MN.shape[1] % TILE * beside
    if below:
        x_MN = paddle.concat([x_MN, paddle.zeros([below, x_MN.shape[1]], dtype=x_MN.dtype)])
    if right:
        x_MN = paddle.concat([x_MN, paddle.zeros([x_MN.shape[0], right], dtype=x_MN.dtype)], axis=1)
    return x_MN


def _stacked(weight: Codes, offsets: paddle.Tensor | None) -> paddle.Tensor:
    """The numbers of a weight, [K, N] or [E, K, N]."""
    found = decode(weight)
    return found if offsets is None else found.reshape([offsets.shape[0] - 1, -1, found.shape[1]])
