"""RMSNorm (Zhang and Sennrich 2019): x / sqrt(mean(x^2) + eps), then times weight.

The statistics are fp32; the normalised value is cast back to the type of x BEFORE the product
with the weight, as ERNIE 4.5 does (it matters in bf16).

With r = (mean(x^2) + eps)^(-1/2) and y = x r w, the gradients of a row of D values are
    dw = sum over rows of (g x r),    dx = g w r - x r^3 mean(g w x).
"""

from collections.abc import Callable
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.linear import add, add_reference


def rms_norm(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """x [..., D] normalised over D, times weight [D]; same type as x."""
    return choose("rms_norm")(x, weight, epsilon)


def add_rms_norm(
    x: paddle.Tensor,
    delta: paddle.Tensor,
    weight: paddle.Tensor,
    epsilon: float,
    *,
    normalise: Callable[[paddle.Tensor], paddle.Tensor] | None = None,
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """The residual sum x + delta, and that sum normalised; both of the shape and type of x.

    `normalise` takes the place of `rms_norm` where the two are not one operator.
    """
    chosen = choose("add_rms_norm")
    if normalise is not None and chosen is add_rms_norm_reference:
        total = add(x, delta)
        return total, normalise(total)
    return chosen(x, delta, weight, epsilon)


def add_rms_norm_reference(
    x: paddle.Tensor, delta: paddle.Tensor, weight: paddle.Tensor, epsilon: float
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """`add_rms_norm` by the two operators."""
    total = add_reference(x, delta)
    return total, rms_norm(total, weight, epsilon)


def rms_norm_reference(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """`rms_norm` by plain operators."""
    dtype = x.dtype
    x32 = x.astype("float32") if dtype != paddle.float32 else x
    normed = x32 * paddle.rsqrt((x32 * x32).mean(-1, keepdim=True) + epsilon)
    normed, weight = to_arithmetic(to_storage(normed, dtype), weight)
    return to_storage(normed * weight, dtype)


def rms_norm_cpu(x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """The same for fp32 with a backward pass of its own; other types take the reference."""
    if x.dtype != paddle.float32 or weight.dtype != paddle.float32:
        return rms_norm_reference(x, weight, epsilon)
    return _RMSNorm.apply(x, weight, epsilon)


class _RMSNorm(PyLayer):
    """Saves x and one number a row.

    Sums over rows and columns, and products with one row or one column, are written as matrix
    products with a vector: Paddle's own reductions and broadcasts take 4 to 10 times as long.
    """

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, epsilon: float) -> paddle.Tensor:
        size = x.shape[-1]
        x_RD = x.reshape([-1, size])
        mean_R1 = paddle.matmul(x_RD * x_RD, paddle.full([size, 1], 1.0 / size))
        scale_R1 = paddle.rsqrt(mean_R1 + epsilon)
        ctx.save_for_backward(x_RD, weight, scale_R1)
        ctx.wanted = not x.stop_gradient, not weight.stop_gradient
        return (x_RD * paddle.matmul(scale_R1, weight.unsqueeze(0))).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        x_RD, weight, scale_R1 = ctx.saved_tensor()
        size = weight.shape[0]
        grad_RD = grad.reshape([-1, size])
        product_RD = grad_RD * x_RD
        grad_x = grad_weight = None
        if ctx.wanted[1]:
            # A transposed [R, 1] is the same memory as [1, R]; MKL's transposed product of it is slow.
            grad_weight = paddle.matmul(scale_R1.reshape([1, -1]), product_RD).reshape([size])
        if not ctx.wanted[0]:
            return None, grad_weight
        mean_R1 = paddle.matmul(product_RD, (weight / size).unsqueeze(-1))
        pull_R1 = mean_R1 * scale_R1 * scale_R1 * scale_R1
        grad_x = grad_RD * paddle.matmul(scale_R1, weight.unsqueeze(0))
        grad_x = grad_x.subtract_(x_RD * paddle.matmul(pull_R1, paddle.ones([1, size])))
        return grad_x.reshape(grad.shape), grad_weight
