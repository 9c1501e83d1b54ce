"""The sum of two tensors by the native kernels: bf16 without wide copies."""

from ctypes import c_int, c_long, c_void_p
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops.kernels import library
from erniekit.ops.linear import add_reference
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty


def add_native(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    """As `add_reference`, which also serves mixed types and shapes."""
    if not takes(x, y) or x.shape != y.shape:
        return add_reference(x, y)
    if not paddle.is_grad_enabled():
        return _sum(x, y)
    return _Add.apply(x, y)


def _sum(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    x, y = contiguous(x), contiguous(y)
    out = empty(x.shape, dtype=x.dtype)
    library.load().declare("ek_add", c_int, c_long, c_void_p, c_void_p, c_void_p)(
        TYPES[x.dtype], x.size, x.data_ptr(), y.data_ptr(), out.data_ptr()
    )
    return out


class _Add(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
        ctx.wanted = not x.stop_gradient, not y.stop_gradient
        return _sum(x, y)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        to_x, to_y = ctx.wanted
        # Paddle adds to a gradient in place, so two tensors must not share one.
        return grad if to_x else None, (grad.clone() if to_x else grad) if to_y else None
