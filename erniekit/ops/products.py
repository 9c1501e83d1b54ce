"""Products of matrices without a graph, for operators whose gradients are by hand.

M rows, K, N features, E experts: with `offsets` (int64 [E + 1]) rows of every expert go with its own matrix
"""

from functools import partial

import paddle

from erniekit.ops import gradients
from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.tiles import Codes


def product(
    x_MK: paddle.Tensor | Codes,
    weight: paddle.Tensor | Codes,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """x times the weight [K, N] (or [E, K, N]) plus bias, in the type of x; `turned`: times its transpose.

    Both may be bytes (`fp8_gemm.py`), the matrices of experts then one below the other.
    """
    return choose("product_of_codes" if isinstance(x_MK, Codes) else "product")(
        x_MK, weight, bias=bias, offsets=offsets, turned=turned
    )


def weight_gradient(
    parameter: paddle.Tensor,
    x_MK: paddle.Tensor | Codes,
    grad_MN: paddle.Tensor | Codes,
    *,
    offsets: paddle.Tensor | None = None,
) -> paddle.Tensor | None:
    """x^T g, added in fp32 to the main gradient of a parameter; returns what a backward pass returns."""
    return choose("gradient_of_codes" if isinstance(x_MK, Codes) else "weight_gradient")(
        parameter, x_MK, grad_MN, offsets=offsets
    )


@paddle.no_grad()
def product_reference(
    x_MK: paddle.Tensor,
    weight: paddle.Tensor,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """`product` by Paddle's operators, expert by expert."""
    dtype = x_MK.dtype
    x_MK, weight = to_arithmetic(x_MK)[0], to_arithmetic(weight)[0]
    if offsets is None:
        y = paddle.matmul(x_MK, weight, transpose_y=turned)
        return to_storage(y if bias is None else y + to_arithmetic(bias)[0], dtype)
    parts = [
        paddle.matmul(x_MK[start:stop], weight[expert], transpose_y=turned)
        for expert, start, stop in _filled(offsets)
    ]
    if not parts:
        return paddle.zeros([0, weight.shape[-2 if turned else -1]], dtype=dtype)
    return to_storage(paddle.concat(parts), dtype)


@paddle.no_grad()
def weight_gradient_reference(
    parameter: paddle.Tensor,
    x_MK: paddle.Tensor,
    grad_MN: paddle.Tensor,
    *,
    offsets: paddle.Tensor | None = None,
) -> paddle.Tensor | None:
    """`weight_gradient` by Paddle's operators."""
    x_MK, grad_MN = x_MK.astype("float32"), grad_MN.astype("float32")
    return gradients.contribute(parameter, partial(_add_gradient, x_MK, grad_MN, offsets))


@paddle.no_grad()
def _add_gradient(
    x_MK: paddle.Tensor, grad_MN: paddle.Tensor, offsets: paddle.Tensor | None, parameter: paddle.Tensor
) -> paddle.Tensor:
    written, factor = gradients.target(parameter)
    if factor == 0.0:
        written.zero_()
    if offsets is None:
        return written.add_(paddle.matmul(x_MK, grad_MN, transpose_x=True))
    for expert, start, stop in _filled(offsets):
        own = paddle.matmul(x_MK[start:stop], grad_MN[start:stop], transpose_x=True)
        written[expert] = written[expert] + own
    return written


def _filled(offsets: paddle.Tensor) -> list[tuple[int, int, int]]:
    """(expert, first row, last row + 1) of those that have rows."""
    bounds = offsets.tolist()
    pairs = zip(bounds[:-1], bounds[1:], strict=True)
    return [(expert, start, stop) for expert, (start, stop) in enumerate(pairs) if stop > start]
