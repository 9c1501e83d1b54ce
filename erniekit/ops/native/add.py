"""Sums of tensors, and of gradients of the readers of one, by the native kernels: bf16 without wide copies.

Paddle sums the gradients of a tensor that several operators read on one core, and bf16 element by
element; the gradient of its `reshape` is a copy, and its casts run on one core. `views` gives every
reader a tensor of its own, in the same memory and its own shape, and sums what comes back.
"""

from collections.abc import Sequence
from ctypes import c_int, c_long, c_void_p
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import remake
from erniekit.ops.kernels import library
from erniekit.ops.linear import add_reference, views_reference, widen_reference
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty


def add_native(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    """As `add_reference`, which also serves mixed types and shapes."""
    if not takes(x, y) or x.shape != y.shape:
        return add_reference(x, y)
    if not paddle.is_grad_enabled():
        return _sum(x, y)
    return _Add.apply(x, y)


def views_native(x: paddle.Tensor, *shapes: Sequence[int]) -> tuple[paddle.Tensor, ...]:
    """As `views_reference`, without a copy; the gradients are summed in the order of the readers."""
    if not takes(x) or x.stop_gradient or not paddle.is_grad_enabled() or not x.is_contiguous():
        return views_reference(x, *shapes)
    kept = remake.keep(x)
    found = _Views.apply(x, shapes)
    found = found if isinstance(found, tuple) else (found,)
    return tuple(remake.mark(view, _again, kept, tuple(view.shape)) for view in found)


def _again(kept: remake.Recipe, shape: tuple[int, ...]) -> paddle.Tensor:
    return remake.restore(kept).reshape(shape)


def widen_native(x: paddle.Tensor) -> paddle.Tensor:
    """As `widen_reference`, on all cores."""
    if x.dtype != paddle.bfloat16:
        return widen_reference(x)
    if not paddle.is_grad_enabled():
        return _converted(x, paddle.float32)
    return _Widen.apply(x)


def _converted(x: paddle.Tensor, dtype: paddle.dtype) -> paddle.Tensor:
    x = contiguous(x)
    out = empty(x.shape, dtype=dtype)
    library.load().declare("ek_convert", c_int, c_long, c_void_p, c_void_p)(
        TYPES[x.dtype], x.size, x.data_ptr(), out.data_ptr()
    )
    return out


def _sum(x: paddle.Tensor, y: paddle.Tensor, out: paddle.Tensor | None = None) -> paddle.Tensor:
    x, y = contiguous(x), contiguous(y)
    out = empty(x.shape, dtype=x.dtype) if out is None else out
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


class _Views(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, shapes: Sequence[Sequence[int]]) -> tuple[paddle.Tensor, ...]:
        ctx.shape = x.shape
        # Not `detach` or a `reshape` to the same shape, which Paddle takes for operations in place.
        return tuple(x.view(list(shape)) for shape in shapes)

    @staticmethod
    def backward(ctx: Any, *grads: paddle.Tensor) -> paddle.Tensor:
        total = grads[0].reshape(ctx.shape)
        for index, grad in enumerate(grads[1:]):
            # The first sum has memory of its own, which may be added to.
            total = _sum(total, grad, total if index else None)
        return total


class _Widen(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor) -> paddle.Tensor:
        return _converted(x, paddle.float32)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        return _converted(grad, paddle.bfloat16)
