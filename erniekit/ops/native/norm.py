"""RMSNorm, alone and with the residual sum before it, by the native kernels.

What is kept for the backward pass is the row that was normalised (the residual stream itself) and one
fp32 number a row. The result is marked as cheap to make again from them, so a matrix product that
reads it keeps nothing of its own.
"""

from ctypes import c_float, c_int, c_long, c_void_p
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.kernels import library
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty
from erniekit.ops.norm import add_rms_norm_reference, rms_norm_reference


def rms_norm_native(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """As `rms_norm_reference`, which also serves mixed types."""
    if not takes(x, weight):
        return rms_norm_reference(x, weight, epsilon)
    x = contiguous(x)
    if not paddle.is_grad_enabled():
        return _forward(x, None, weight, epsilon)[1]
    made: list[Any] = []
    normed = _RMSNorm.apply(x, weight, epsilon, made)
    return remake.mark(normed, _again, *made)


def add_rms_norm_native(
    x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, epsilon: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """As `add_rms_norm_reference`, which also serves mixed types and shapes."""
    if not takes(x, delta, weight) or x.shape != delta.shape:
        return add_rms_norm_reference(x, delta, weight, epsilon)
    x, delta = contiguous(x), contiguous(delta)
    if not paddle.is_grad_enabled():
        return _forward(x, delta, weight, epsilon)[:2]
    made: list[Any] = []
    total, normed = _AddRMSNorm.apply(x, delta, weight, epsilon, made)
    return total, remake.mark(normed, _again, *made)


def _kernel() -> Any:
    return library.load().declare(
        "ek_rms_norm",
        *(c_int, c_long, c_long, c_void_p, c_void_p, c_void_p, c_float),
        *(c_void_p, c_void_p, c_void_p, c_int),
    )


def _size(x: paddle.Tensor) -> tuple[int, int]:
    width = x.shape[-1]
    return (x.size // width if width else 0), width


def _forward(
    x: paddle.Tensor, delta: paddle.Tensor | None, weight: paddle.Tensor, epsilon: float
) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
    """The rows that were normalised (x, or x + delta), the result, and the factor of each row."""
    rows, width = _size(x)
    total = x if delta is None else empty(x.shape, dtype=x.dtype)
    normed = empty(x.shape, dtype=x.dtype)
    scales_R = empty([rows], dtype="float32")
    _kernel()(
        *(TYPES[x.dtype], rows, width, x.data_ptr(), None if delta is None else delta.data_ptr()),
        *(weight.data_ptr(), epsilon, total.data_ptr(), normed.data_ptr(), scales_R.data_ptr(), 0),
    )
    return total, normed, scales_R


def _again(x: paddle.Tensor, weight: paddle.Tensor, scales_R: paddle.Tensor) -> paddle.Tensor:
    """The result once more, from the factors of the rows."""
    rows, width = _size(x)
    normed = empty(x.shape, dtype=x.dtype)
    _kernel()(
        *(TYPES[x.dtype], rows, width, x.data_ptr(), None, weight.data_ptr(), 0.0),
        *(None, normed.data_ptr(), scales_R.data_ptr(), 1),
    )
    return normed


def _backward(
    ctx: Any, grad: paddle.Tensor, grad_sum: paddle.Tensor | None, num_copies: int
) -> tuple[list[paddle.Tensor], paddle.Tensor | None]:
    """Gradient of the normalised rows, `grad_sum` added, and that of the weight (None where it is no result).

    Of the first as many copies as wanted, 0 to 2: Paddle adds further gradients of a tensor in place,
    so two tensors must never be given one and the same.
    """
    x, weight, scales_R = ctx.saved
    ctx.saved = None
    rows, width = _size(x)
    grad = contiguous(grad)
    copies = [empty(x.shape, dtype=x.dtype) for _ in range(num_copies)]
    pointers = [copy.data_ptr() for copy in copies] + [None, None]
    written, factor = gradients.target(weight) if ctx.to_weight else (None, 0.0)
    library.load().declare("ek_rms_norm_backward", *(c_int, c_long, c_long), *([c_void_p] * 8), c_float)(
        *(TYPES[x.dtype], rows, width, grad.data_ptr()),
        None if grad_sum is None else grad_sum.data_ptr(),
        *(x.data_ptr(), weight.data_ptr(), scales_R.data_ptr(), *pointers[:2]),
        None if written is None else written.data_ptr(),
        factor,
    )
    return copies, None if written is None else gradients.hand_over(weight, written)


class _RMSNorm(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, epsilon: float, made: list[Any]
    ) -> paddle.Tensor:
        _, normed, scales_R = _forward(x, None, weight, epsilon)
        ctx.to_x, ctx.to_weight = not x.stop_gradient, not weight.stop_gradient
        ctx.saved = (x, weight, scales_R)
        made.extend(ctx.saved)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        copies, grad_weight = _backward(ctx, grad, None, int(ctx.to_x))
        return copies[0] if copies else None, grad_weight


class _AddRMSNorm(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        delta: paddle.Tensor,
        weight: paddle.Tensor,
        epsilon: float,
        made: list[Any],
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        total, normed, scales_R = _forward(x, delta, weight, epsilon)
        ctx.to_x, ctx.to_delta = not x.stop_gradient, not delta.stop_gradient
        ctx.to_weight = not weight.stop_gradient
        # Detached, since an output that its own node holds is a circle that nobody frees.
        ctx.saved = (total.detach(), weight, scales_R)
        made.extend(ctx.saved)
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    def backward(
        ctx: Any, grad_sum: paddle.Tensor | None, grad: paddle.Tensor | None
    ) -> tuple[paddle.Tensor | None, ...]:
        if grad is None:
            assert grad_sum is not None, "backward of something that nothing depends on"
            return grad_sum if ctx.to_x else None, grad_sum.clone() if ctx.to_delta else None, None
        if grad_sum is not None:
            grad_sum = contiguous(grad_sum)
        copies, grad_weight = _backward(ctx, grad, grad_sum, ctx.to_x + ctx.to_delta)
        return copies[0] if ctx.to_x else None, copies[-1] if ctx.to_delta else None, grad_weight
