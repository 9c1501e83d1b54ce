"""Embedding by the native kernels: its gradient is added to the rows of the main gradient it concerns.

Paddle's own makes a whole table of zeros for it, in the type of the weight, where positions that hold
the same id are summed in bf16.
"""

from ctypes import c_int, c_long, c_void_p
from typing import Any

import numpy as np
import paddle
from paddle.autograd import PyLayer

from erniekit.errors import DataError
from erniekit.ops import gradients
from erniekit.ops.embedding import embedding_reference
from erniekit.ops.kernels import library
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty


def embedding_native(ids: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
    """As `embedding_reference`, which serves other types.

    Raises:
        DataError: an id is no row of the table.
    """
    if not takes(weight) or ids.dtype != paddle.int64:
        return embedding_reference(ids, weight)
    # A copy, which nobody changes before the backward pass.
    flat = ids.numpy().reshape(-1)
    if flat.size and not (flat.min() >= 0 and flat.max() < weight.shape[0]):
        wrong = flat[(flat < 0) | (flat >= weight.shape[0])][0]
        raise DataError(
            f"token id {wrong} is outside the model's vocabulary of {weight.shape[0]}; "
            "the tokenizer belongs to another model"
        )
    if not paddle.is_grad_enabled() or weight.stop_gradient:
        return _forward(flat, ids.shape, weight)
    return _Embedding.apply(weight, flat, ids.shape)


def _forward(flat: np.ndarray, shape: list[int], weight: paddle.Tensor) -> paddle.Tensor:
    weight = contiguous(weight)
    width = weight.shape[1]
    out = empty([*shape, width], dtype=weight.dtype)
    library.load().declare("ek_embedding", c_int, c_long, c_long, c_void_p, c_void_p, c_void_p)(
        TYPES[weight.dtype], flat.size, width, flat.ctypes.data, weight.data_ptr(), out.data_ptr()
    )
    return out


class _Embedding(PyLayer):
    @staticmethod
    def forward(ctx: Any, weight: paddle.Tensor, flat: np.ndarray, shape: list[int]) -> paddle.Tensor:
        ctx.weight, ctx.flat = weight, flat
        return _forward(flat, shape, weight)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor | None:
        weight, flat = ctx.weight, ctx.flat
        grad = contiguous(grad)
        written, factor = gradients.target(weight)
        library.load().declare(
            "ek_embedding_backward", c_int, c_long, c_long, c_long, c_void_p, c_void_p, c_void_p, c_int
        )(
            *(TYPES[grad.dtype], flat.size, weight.shape[1], weight.shape[0], flat.ctypes.data),
            *(grad.data_ptr(), written.data_ptr(), factor != 0.0),
        )
        return gradients.hand_over(weight, written)
