"""The matrix products of experts over rows that are sorted by expert: one call for all experts.

For the rows x_e of expert e: y_e = x_e W_e, and with the incoming gradient g: dx_e = g_e W_e^T,
dW_e = x_e^T g_e, in fp32 and added to the main gradient of the stacked weight.
"""

from ctypes import c_float, c_int, c_long, c_void_p
from functools import partial
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.kernels import library
from erniekit.ops.moe import grouped_linear_reference
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty


def grouped_linear_native(
    x_MI: paddle.Tensor, weight: paddle.Tensor, offsets: paddle.Tensor
) -> paddle.Tensor:
    """As `grouped_linear_reference`, which also serves mixed types."""
    if not takes(x_MI, weight):
        return grouped_linear_reference(x_MI, weight, offsets)
    bounds = contiguous(offsets.astype("int64"))
    if not paddle.is_grad_enabled():
        return grouped_product(x_MI, weight, bounds)
    return _GroupedLinear.apply(x_MI, weight, remake.keep(x_MI), _Bounds(bounds))


class _Bounds:
    """Offsets that Paddle does not take for an input of the graph."""

    def __init__(self, offsets: paddle.Tensor) -> None:
        self.offsets = offsets


def grouped_product(
    x_MI: paddle.Tensor, weight: paddle.Tensor, offsets: paddle.Tensor, *, transposed: bool = False
) -> paddle.Tensor:
    """Rows times the weight of their group, or times its transpose."""
    num_groups, inner, outer = weight.shape
    if transposed:
        inner, outer = outer, inner
    assert x_MI.shape[1] == inner, (x_MI.shape, weight.shape)
    x_MI, weight = contiguous(x_MI), contiguous(weight)
    out = empty([x_MI.shape[0], outer], dtype=x_MI.dtype)
    signature = (c_int, c_long, c_void_p, c_long, c_long, c_void_p, c_void_p, c_int, c_void_p)
    library.load().declare("ek_grouped_gemm", *signature)(
        *(TYPES[x_MI.dtype], num_groups, offsets.data_ptr(), outer, inner),
        *(x_MI.data_ptr(), weight.data_ptr(), transposed, out.data_ptr()),
    )
    return out


def grouped_weight_gradient(
    x_MI: paddle.Tensor, grad_MO: paddle.Tensor, offsets: paddle.Tensor, weight: paddle.Tensor
) -> paddle.Tensor:
    """Add x_e^T g_e of every group to the main gradient of a weight; returns it."""
    written, factor = gradients.target(weight)
    signature = (c_int, c_long, c_void_p, c_long, c_long, c_void_p, c_void_p, c_void_p, c_float)
    library.load().declare("ek_grouped_gemm_gradient", *signature)(
        *(TYPES[x_MI.dtype], weight.shape[0], offsets.data_ptr(), x_MI.shape[1], grad_MO.shape[1]),
        *(x_MI.data_ptr(), grad_MO.data_ptr(), written.data_ptr(), factor),
    )
    return written


class _GroupedLinear(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x_MI: paddle.Tensor, weight: paddle.Tensor, kept: Any, bounds: _Bounds
    ) -> paddle.Tensor:
        ctx.wanted = not x_MI.stop_gradient, not weight.stop_gradient
        ctx.kept = kept if ctx.wanted[1] else None
        ctx.weight, ctx.offsets = weight, bounds.offsets
        return grouped_product(x_MI, weight, bounds.offsets)

    @staticmethod
    def backward(ctx: Any, grad_MO: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        weight, offsets = ctx.weight, ctx.offsets
        grad_MO = contiguous(grad_MO)
        grad_x = grad_weight = None
        if ctx.wanted[1]:
            x_MI = contiguous(remake.restore(ctx.kept))
            ctx.kept = None
            grad_weight = gradients.contribute(
                weight, partial(grouped_weight_gradient, x_MI, grad_MO, offsets)
            )
            del x_MI
        if ctx.wanted[0]:
            grad_x = grouped_product(grad_MO, weight, offsets, transposed=True)
        return grad_x, grad_weight
