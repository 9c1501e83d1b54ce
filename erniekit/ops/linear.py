"""Matrix products and element sums in the storage type of their inputs (fp32 inside on a CPU)."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.quantised import QuantisedMatrix, quantised_linear


def linear(
    x: paddle.Tensor, weight: paddle.Tensor | QuantisedMatrix, bias: paddle.Tensor | None = None
) -> paddle.Tensor:
    """x [..., I] times weight [I, O] plus bias [O]; sums in fp32, result in the type of x."""
    if isinstance(weight, QuantisedMatrix):
        return quantised_linear(x, weight, bias)
    return choose("linear")(x, weight, bias)


def linear_reference(
    x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None = None
) -> paddle.Tensor:
    """`linear` by plain operators."""
    dtype = x.dtype
    if gradients.are_put_off() and not weight.stop_gradient and paddle.is_grad_enabled():
        y = _LaterLinear.apply(x, weight, remake.keep(x))
    else:
        y = paddle.matmul(*to_arithmetic(x, weight))
    if bias is not None:
        y = y + to_arithmetic(bias)[0]
    return to_storage(y, dtype)


class _LaterLinear(PyLayer):
    """The product whose weight gradient may be put off, as `gradients.contribute` decides."""

    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, kept: remake.Recipe) -> paddle.Tensor:
        ctx.weight, ctx.kept, ctx.to_x = weight, kept, not x.stop_gradient
        return paddle.matmul(*to_arithmetic(x, weight))

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        x, weight = remake.restore(ctx.kept), ctx.weight
        ctx.kept = None
        to_weight = gradients.contribute(weight, partial(_weight_gradient, x, grad))
        if not ctx.to_x:
            return None, to_weight
        wide, grad = to_arithmetic(weight, grad)
        return to_storage(paddle.matmul(grad, wide, transpose_y=True), x.dtype), to_weight


def _weight_gradient(x: paddle.Tensor, grad: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    x_MK, grad_MN = (each.reshape([-1, each.shape[-1]]) for each in to_arithmetic(x, grad))
    return gradients.add_up(weight, paddle.matmul(x_MK, grad_MN, transpose_x=True))


def add(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    """The residual sum x + y, same shape."""
    return choose("add")(x, y)


def views(x: paddle.Tensor, *shapes: Sequence[int]) -> tuple[paddle.Tensor, ...]:
    """x in each of the shapes, for as many readers; their gradients are summed in the type of x."""
    return choose("views")(x, *shapes)


def views_reference(x: paddle.Tensor, *shapes: Sequence[int]) -> tuple[paddle.Tensor, ...]:
    """`views` that leaves the sum to Paddle."""
    return tuple(_viewed(x, list(shape)) for shape in shapes)


def _viewed(x: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
    if shape == x.shape:
        return x
    return remake.mark(x.reshape(shape), _reshaped, remake.keep(x), shape)


def _reshaped(kept: remake.Recipe, shape: list[int]) -> paddle.Tensor:
    return remake.restore(kept).reshape(shape)


def widen(x: paddle.Tensor) -> paddle.Tensor:
    """x in fp32; its gradient comes back in the type of x."""
    if x.dtype == paddle.float32:
        return x
    kept = remake.keep(x)  # the copy in fp32 is cheaper to make again than to keep
    return remake.mark(choose("widen")(x), _widened, kept)


def widen_reference(x: paddle.Tensor) -> paddle.Tensor:
    """`widen` by Paddle's operator."""
    return x.astype("float32")


def _widened(kept: remake.Recipe) -> paddle.Tensor:
    return choose("widen")(remake.restore(kept))


def add_reference(x: paddle.Tensor, y: paddle.Tensor) -> paddle.Tensor:
    """`add` by Paddle's operators."""
    dtype = x.dtype
    x, y = to_arithmetic(x, y)
    return to_storage(x + y, dtype)
