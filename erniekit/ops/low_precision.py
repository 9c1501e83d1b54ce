"""Matrix products whose factors are rounded on their way in, with gradients to the weights themselves.

    y = [x] [W],    dx = [g] [W]^T,    dW = [x]' [g]'

[.] are roundings that an `Arithmetic` decides; through them gradients pass straight (Bengio et al. 2013).
Sums are in fp32. Rounded weights are made anew in both passes, so that beside the parameter nothing stays.

    M rows, K, N features, E experts
"""

from typing import Any, Protocol, TypeAlias

import numpy as np
import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.products import product, weight_gradient
from erniekit.ops.tiles import Codes

Factor: TypeAlias = paddle.Tensor | Codes


class Arithmetic(Protocol):
    """How the factors of a layer's products are rounded. `bounds`: int64 [E + 1] of the experts, or None.

    All factors of a product are tensors, or all are bytes, where the device multiplies those.
    The weight is [K, N] or [E K, N]; where it is rotated, so are inputs, and `input_gradient` turns back.
    """

    def weight(self, weight_KN: paddle.Tensor, bounds: Any) -> Factor:
        """[W], of stacked experts' matrices [E K, N] too."""

    def input(self, x_MK: paddle.Tensor, kept: remake.Recipe, bounds: Any) -> tuple[Factor, Any]:
        """[x], and what to keep for `input_again`; `kept` makes x again."""

    def input_again(self, kept: Any, bounds: Any) -> Factor:
        """[x]' of the weight's gradient."""

    def gradient(self, grad_MN: paddle.Tensor, bounds: Any) -> Factor:
        """[g] of the input's gradient."""

    def gradient_again(self, grad_MN: paddle.Tensor, bounds: Any) -> Factor:
        """[g]' of the weight's gradient."""

    def input_gradient(self, grad_MK: paddle.Tensor) -> paddle.Tensor:
        """dx of what [g] [W]^T gives."""


def low_precision_linear(
    x: paddle.Tensor,
    weight: paddle.Tensor,
    bias: paddle.Tensor | None,
    arithmetic: Arithmetic,
) -> paddle.Tensor:
    """[x] [W] + bias for x [..., K] and a weight [K, N]."""
    return _Product.apply(x, weight, bias, remake.keep(x), _How(arithmetic))


def low_precision_grouped_linear(
    x_MK: paddle.Tensor, weight: paddle.Tensor, offsets: paddle.Tensor, arithmetic: Arithmetic
) -> paddle.Tensor:
    """Rows of every expert times its matrix of [E, K, N]."""
    offsets = offsets.astype("int64").contiguous()
    return _Product.apply(x_MK, weight, None, remake.keep(x_MK), _How(arithmetic, offsets))


class _How:
    """What Paddle is not to take for inputs of the graph."""

    def __init__(self, arithmetic: Arithmetic, offsets: paddle.Tensor | None = None) -> None:
        self.arithmetic, self.offsets = arithmetic, offsets
        self.bounds = None if offsets is None else offsets.numpy()

    def rounded(self, weight: paddle.Tensor) -> Factor:
        """[W] in the shape of W, or as bytes."""
        if self.offsets is None:
            return self.arithmetic.weight(weight, None)
        experts, rows, columns = weight.shape
        flat = weight.reshape([experts * rows, columns])
        bounds = np.arange(experts + 1, dtype=np.int64) * rows
        found = self.arithmetic.weight(flat, bounds)
        return found if isinstance(found, Codes) else found.reshape(weight.shape)


class _Product(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        weight: paddle.Tensor,
        bias: paddle.Tensor | None,
        kept: remake.Recipe,
        how: _How,
    ) -> paddle.Tensor:
        ctx.wanted = [t is not None and not t.stop_gradient for t in (x, weight, bias)]
        ctx.weight, ctx.bias, ctx.how, ctx.shape = weight, bias, how, x.shape
        numbers, to_keep = how.arithmetic.input(_rows(x), kept, how.bounds)
        ctx.kept = to_keep if ctx.wanted[1] else None
        y = product(numbers, how.rounded(weight), bias=bias, offsets=how.offsets)
        return y.reshape([*x.shape[:-1], y.shape[-1]])

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        how, arithmetic = ctx.how, ctx.how.arithmetic
        to_x, to_weight, to_bias = ctx.wanted
        grad_MN = _rows(grad)
        results: list[paddle.Tensor | None] = [None, None]
        if to_weight:
            x_MK = _rows(arithmetic.input_again(ctx.kept, how.bounds))
            ctx.kept = None
            results[1] = weight_gradient(
                ctx.weight, x_MK, arithmetic.gradient_again(grad_MN, how.bounds), offsets=how.offsets
            )
            del x_MK
        if to_x:
            numbers = arithmetic.gradient(grad_MN, how.bounds)
            grad_x = product(numbers, how.rounded(ctx.weight), offsets=how.offsets, turned=True)
            results[0] = arithmetic.input_gradient(grad_x).reshape(ctx.shape)
        if ctx.bias is not None:
            results.append(_bias_gradient(ctx.bias, grad_MN) if to_bias else None)
        return tuple(results)


def _rows(x: Factor) -> Factor:
    return x if isinstance(x, Codes) else x.reshape([-1, x.shape[-1]])


def _bias_gradient(bias: paddle.Tensor, grad_MN: paddle.Tensor) -> paddle.Tensor | None:
    written, factor = gradients.target(bias)
    if factor == 0.0:
        written.zero_()
    written.add_(grad_MN.astype("float32").sum(0))
    return gradients.hand_over(bias, written)
