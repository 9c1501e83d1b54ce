"""The linear operator over the native matrix product.

With y = x W + b and incoming gradient g: dx = g W^T, dW = x^T g (fp32, added to the parameter's main
gradient), db = the sum of g over rows. Of the input only what `remake.keep` says is kept.
"""

from ctypes import c_float, c_int, c_long, c_void_p
from functools import partial
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.kernels import library
from erniekit.ops.linear import linear_reference
from erniekit.ops.native.matmul import TYPES, contiguous, matmul_into, takes
from erniekit.ops.native.memory import empty


def linear_native(
    x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None
) -> paddle.Tensor:
    """As `linear_reference`, which also serves mixed types."""
    if not takes(x, weight, bias):
        return linear_reference(x, weight, bias)
    if not paddle.is_grad_enabled():
        return _forward(x, weight, bias)
    return _Linear.apply(x, weight, bias, remake.keep(x))


def _rows(x: paddle.Tensor) -> paddle.Tensor:
    return contiguous(x).reshape([-1, x.shape[-1]])


def _forward(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    rows = _rows(x)
    out = empty([*x.shape[:-1], weight.shape[1]], dtype=x.dtype)
    matmul_into(out.reshape([-1, weight.shape[1]]), rows, contiguous(weight), bias_N=bias)
    return out


class _Linear(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None, kept: Any
    ) -> paddle.Tensor:
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.kept = kept if ctx.wanted[1] else None
        ctx.weight, ctx.bias, ctx.shape = weight, bias, x.shape
        return _forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        weight, bias = ctx.weight, ctx.bias
        to_x, to_weight, to_bias = ctx.wanted
        grad_MN = _rows(grad)
        results: list[paddle.Tensor | None] = [None, None]
        if to_weight:
            x_MK = _rows(remake.restore(ctx.kept))
            ctx.kept = None
            results[1] = gradients.contribute(weight, partial(matrix_weight_gradient, x_MK, grad_MN))
            del x_MK
        if to_x:
            grad_x = empty(ctx.shape, dtype=grad.dtype)
            matmul_into(grad_x.reshape([-1, ctx.shape[-1]]), grad_MN, contiguous(weight), transpose_b=True)
            results[0] = grad_x
        if bias is not None:
            results.append(_bias_gradient(bias, grad_MN) if to_bias else None)
        return tuple(results)


def matrix_weight_gradient(
    x_MK: paddle.Tensor, grad_MN: paddle.Tensor, weight: paddle.Tensor
) -> paddle.Tensor:
    """Add x^T g to the main gradient of a weight; returns it."""
    written, factor = gradients.target(weight)
    matmul_into(written, x_MK, grad_MN, transpose_a=True, add=factor != 0.0)
    return written


def _bias_gradient(bias: paddle.Tensor, grad_MN: paddle.Tensor) -> paddle.Tensor | None:
    written, factor = gradients.target(bias)
    add_rows(written, grad_MN, factor)
    return gradients.hand_over(bias, written)


def add_rows(out_N: paddle.Tensor, x_MN: paddle.Tensor, factor: float) -> None:
    """out = factor * out + the sum of the rows of x, in fp32 and in the order of the rows."""
    m, n = x_MN.shape
    library.load().declare("ek_sum_rows", c_int, c_long, c_long, c_void_p, c_void_p, c_float)(
        TYPES[x_MN.dtype], m, n, x_MN.data_ptr(), out_N.data_ptr(), factor
    )
