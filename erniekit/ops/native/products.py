"""Products without a graph on the native kernels."""

from functools import partial

import paddle

from erniekit.ops import gradients
from erniekit.ops.native.grouped_linear import grouped_product, grouped_weight_gradient
from erniekit.ops.native.linear import matrix_weight_gradient
from erniekit.ops.native.matmul import contiguous, matmul_into, takes
from erniekit.ops.native.memory import empty
from erniekit.ops.products import product_reference, weight_gradient_reference


def product_native(
    x_MK: paddle.Tensor,
    weight: paddle.Tensor,
    *,
    bias: paddle.Tensor | None = None,
    offsets: paddle.Tensor | None = None,
    turned: bool = False,
) -> paddle.Tensor:
    """As `product_reference`, which also serves mixed types."""
    if not takes(x_MK, weight, bias):
        return product_reference(x_MK, weight, bias=bias, offsets=offsets, turned=turned)
    if offsets is not None:
        return grouped_product(x_MK, weight, offsets, transposed=turned)
    out = empty([x_MK.shape[0], weight.shape[0 if turned else 1]], dtype=x_MK.dtype)
    matmul_into(out, contiguous(x_MK), contiguous(weight), transpose_b=turned, bias_N=bias)
    return out


def weight_gradient_native(
    parameter: paddle.Tensor,
    x_MK: paddle.Tensor,
    grad_MN: paddle.Tensor,
    *,
    offsets: paddle.Tensor | None = None,
) -> paddle.Tensor | None:
    """As `weight_gradient_reference`, which also serves mixed types."""
    if not takes(x_MK, grad_MN):
        return weight_gradient_reference(parameter, x_MK, grad_MN, offsets=offsets)
    x_MK, grad_MN = contiguous(x_MK), contiguous(grad_MN)
    if offsets is not None:
        give = partial(grouped_weight_gradient, x_MK, grad_MN, offsets)
    else:
        give = partial(matrix_weight_gradient, x_MK, grad_MN)
    return gradients.contribute(parameter, give)
