"""The product with a low-rank adapter as one operator over the native kernels.

With h = scale x A, y = x W + b + h B piece by piece, and incoming gradient g (g_p: its columns of
piece p): dB_p = h_p^T g_p and with u_p = scale g_p B_p^T: dA = x^T u, dx = g W^T + u A^T. W is
frozen. Of the forward pass x (as `remake.keep` has it) and h stay, R numbers a row and piece. The
low-rank terms are added to the large product where it lies.
"""

from ctypes import c_float, c_int, c_long, c_void_p
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import gradients, remake
from erniekit.ops.kernels import library
from erniekit.ops.linear import linear
from erniekit.ops.lora import Pieces, each_piece, lora_linear_reference
from erniekit.ops.native.matmul import TYPES, contiguous, matmul_into, takes
from erniekit.ops.native.memory import empty
from erniekit.ops.quantised import QuantisedMatrix, quantised_product


def lora_linear_native(
    x: paddle.Tensor,
    weight: paddle.Tensor | QuantisedMatrix,
    bias: paddle.Tensor | None,
    lora_A: paddle.Tensor,
    lora_B: paddle.Tensor,
    *,
    pieces: Pieces,
    scale: float,
) -> paddle.Tensor:
    """As `lora_linear_reference`, which also serves mixed types and weights that are trained themselves."""
    trained = not weight.stop_gradient or (bias is not None and not bias.stop_gradient)
    if not takes(x, weight, bias, lora_A, lora_B) or trained or not lora_A.is_leaf or not lora_B.is_leaf:
        return lora_linear_reference(x, weight, bias, lora_A, lora_B, pieces=pieces, scale=scale)
    frozen = _Frozen(weight, bias, pieces, scale)
    if not paddle.is_grad_enabled():
        return _forward(x, lora_A, lora_B, frozen)[0]
    return _LoraLinear.apply(x, lora_A, lora_B, frozen, remake.keep(x))


@dataclass(frozen=True)
class _Frozen:
    """What gets no gradient, so that Paddle does not take it for an input of the graph."""

    weight: paddle.Tensor | QuantisedMatrix
    bias: paddle.Tensor | None
    pieces: Pieces
    scale: float


def _rows(x: paddle.Tensor) -> paddle.Tensor:
    return contiguous(x).reshape([-1, x.shape[-1]])


def _forward(
    x: paddle.Tensor, lora_A: paddle.Tensor, lora_B: paddle.Tensor, frozen: _Frozen
) -> tuple[paddle.Tensor, paddle.Tensor]:
    """y and h; gradients are off."""
    x_MI = _rows(x)
    y = linear(x_MI, frozen.weight, frozen.bias)
    inner = empty([x_MI.shape[0], lora_A.shape[1]], dtype="float32")
    matmul_into(inner, x_MI, contiguous(lora_A))
    h = inner.scale_(frozen.scale).astype(x.dtype)
    for ranks, columns, (start, stop) in each_piece(frozen.pieces, lora_B.shape[0]):
        add_low_rank(y[:, start:stop], h[:, ranks], lora_B[:, columns])
    return y.reshape([*x.shape[:-1], frozen.weight.shape[1]]), h


class _LoraLinear(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        lora_A: paddle.Tensor,
        lora_B: paddle.Tensor,
        frozen: _Frozen,
        kept: Any,
    ) -> paddle.Tensor:
        ctx.to_x = not x.stop_gradient
        ctx.trained = not lora_A.stop_gradient, not lora_B.stop_gradient
        ctx.kept = kept if ctx.trained[0] else None
        ctx.factors, ctx.frozen, ctx.shape = (lora_A, lora_B), frozen, x.shape
        y, ctx.h = _forward(x, lora_A, lora_B, frozen)
        return y

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        (lora_A, lora_B), pieces, h = ctx.factors, ctx.frozen.pieces, ctx.h
        rank = lora_B.shape[0]
        grad_MO = _rows(grad)
        inner = empty([grad_MO.shape[0], lora_A.shape[1]], dtype="float32")
        add = 0.0
        if ctx.trained[1]:
            to_B, add = gradients.target(lora_B)
        for ranks, columns, (start, stop) in each_piece(pieces, rank):
            piece = grad_MO[:, start:stop]
            if ctx.trained[1]:
                product(to_B[:, columns], h[:, ranks], piece, transpose_a=True, add=add != 0.0)
            product(inner[:, ranks], piece, lora_B[:, columns], transpose_b=True)
        u = inner.scale_(ctx.frozen.scale).astype(grad.dtype)
        if ctx.trained[0]:
            x_MI = _rows(remake.restore(ctx.kept))
            ctx.kept = None
            to_A, add = gradients.target(lora_A)
            matmul_into(to_A, x_MI, u, transpose_a=True, add=add != 0.0)
            del x_MI
        grad_x = None
        if ctx.to_x:
            grad_MI = _times_transposed(grad_MO, ctx.frozen.weight)
            add_low_rank(grad_MI, u, contiguous(lora_A), transposed=True)
            grad_x = grad_MI.reshape(ctx.shape)
        return grad_x, None, None


def _times_transposed(grad_MO: paddle.Tensor, weight: paddle.Tensor | QuantisedMatrix) -> paddle.Tensor:
    if isinstance(weight, QuantisedMatrix):
        return quantised_product(grad_MO, weight, turned=True)
    grad_MI = empty([grad_MO.shape[0], weight.shape[0]], dtype=grad_MO.dtype)
    matmul_into(grad_MI, grad_MO, contiguous(weight), transpose_b=True)
    return grad_MI


def add_low_rank(
    y_MN: paddle.Tensor, h_MR: paddle.Tensor, b: paddle.Tensor, *, transposed: bool = False
) -> None:
    """y += h b where y lies, in fp32 and rounded once; b is [R, N], or [N, R] when `transposed`.

    The three may be columns of larger matrices and have one type.
    """
    m, n = y_MN.shape
    library.load().declare(
        "ek_add_low_rank",
        *(c_int, c_long, c_long, c_long, c_void_p, c_long, c_void_p, c_long, c_int, c_void_p, c_long),
    )(
        *(TYPES[y_MN.dtype], m, n, h_MR.shape[1], *_place(h_MR), *_place(b), transposed, *_place(y_MN)),
    )


def product(
    out_MN: paddle.Tensor,
    a: paddle.Tensor,
    b: paddle.Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    add: bool = False,
) -> None:
    """As `matmul_into`, on matrices that may be columns of larger ones."""
    m, n = out_MN.shape
    k = a.shape[0 if transpose_a else 1]
    library.load().declare(
        "ek_gemm",
        *(c_int, c_long, c_long, c_long, c_void_p, c_long, c_int, c_void_p, c_long, c_int),
        *(c_void_p, c_long, c_int, c_float, c_void_p),
    )(
        *(TYPES[a.dtype], m, n, k, *_place(a), transpose_a, *_place(b), transpose_b),
        *(*_place(out_MN), TYPES[out_MN.dtype], 1.0 if add else 0.0, None),
    )


def _place(matrix: paddle.Tensor) -> tuple[int, int]:
    """Address, and elements from one row to the next."""
    assert matrix.strides[1] == 1 or not matrix.size or matrix.shape[1] == 1, matrix.strides
    return matrix.data_ptr(), matrix.strides[0]
