"""Self-attention by the native kernels: rotation, grouped heads and packed rows in one operator.

Forward and backward read q, k and v from the fused projection and write one gradient of the same
form; no scores, repeated keys or turned copies exist outside the scratch memory of a thread. Kept
for the backward pass: the projection, the output, and one number for each query and head.
Blocks of keys that no query of a tile sees are skipped, so packed samples cost only themselves.

    B rows, T columns, N query heads, K key heads, D head dim, X = (N + 2K) D
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops.attention import Visibility, self_attention_reference
from erniekit.ops.kernels.library import BF16, FP32, Library, find_library

_P, _L, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_DTYPES = {paddle.float32: FP32, paddle.bfloat16: BF16}


def self_attention(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """Queries and keys turned, then causal attention over the visible columns, [B, T, N D].

    Dropout, columns of a cache and types other than fp32 and bf16 go through `rotate` and `attention`.

    Args:
        qkv_BTX: columns q | k | v, the heads of each side by side.
        turns: complex64 [B, T, heads, D/2] of `rotations`; those of the first head are used.
        dropout: probability that an attention weight is dropped.
    """
    heads = _Heads(num_heads, num_kv_heads, head_dim)
    if dropout or visible.num_past or qkv_BTX.dtype not in _DTYPES:
        return self_attention_reference(
            qkv_BTX,
            turns,
            visible,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            dropout=dropout,
        )
    attend_from_BT = visible.attend_from_BT
    if paddle.is_grad_enabled() and not qkv_BTX.stop_gradient:
        return _SelfAttention.apply(qkv_BTX, turns, attend_from_BT, heads)
    return _forward(qkv_BTX, turns, attend_from_BT, heads, None)


@dataclass(frozen=True)
class _Heads:
    queries: int
    keys: int
    dim: int


class _SelfAttention(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        qkv_BTX: paddle.Tensor,
        turns: paddle.Tensor,
        attend_from_BT: paddle.Tensor,
        heads: _Heads,
    ) -> paddle.Tensor:
        batch, columns = qkv_BTX.shape[:2]
        qkv_BTX = _contiguous(qkv_BTX)
        log_sum_BNT = paddle.empty([batch, heads.queries, columns], "float32")
        out_BTX = _forward(qkv_BTX, turns, attend_from_BT, heads, log_sum_BNT)
        ctx.save_for_backward(qkv_BTX, out_BTX)
        ctx.log_sum, ctx.turns, ctx.attend_from, ctx.heads = log_sum_BNT, turns, attend_from_BT, heads
        return out_BTX

    @staticmethod
    def backward(ctx: Any, grad_BTX: paddle.Tensor) -> tuple[paddle.Tensor, None, None]:
        qkv_BTX, out_BTX = ctx.saved_tensor()
        return _backward(qkv_BTX, out_BTX, grad_BTX, ctx), None, None


def _forward(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    attend_from_BT: paddle.Tensor,
    heads: _Heads,
    log_sum_BNT: paddle.Tensor | None,
) -> paddle.Tensor:
    qkv_BTX, turns, attend_from_BT = map(_contiguous, (qkv_BTX, turns, attend_from_BT))
    batch, columns = qkv_BTX.shape[:2]
    out_BTX = paddle.empty([batch, columns, heads.queries * heads.dim], qkv_BTX.dtype)
    if out_BTX.size:
        call = _library().declare("ek_attention_forward", _P, _P, _L, _P, _P, _P, *[_L] * 5, _I)
        call(
            qkv_BTX.data_ptr(),
            turns.data_ptr(),
            _turn_stride(turns),
            attend_from_BT.data_ptr(),
            out_BTX.data_ptr(),
            None if log_sum_BNT is None else log_sum_BNT.data_ptr(),
            *(batch, columns, heads.queries, heads.keys, heads.dim, _DTYPES[qkv_BTX.dtype]),
        )
    return out_BTX


def _backward(
    qkv_BTX: paddle.Tensor, out_BTX: paddle.Tensor, grad_BTX: paddle.Tensor, ctx: Any
) -> paddle.Tensor:
    heads = ctx.heads
    grad_BTX = _contiguous(grad_BTX.astype(qkv_BTX.dtype))
    turns, attend_from_BT = _contiguous(ctx.turns), _contiguous(ctx.attend_from)
    grad_qkv_BTX = paddle.empty(qkv_BTX.shape, qkv_BTX.dtype)
    if grad_qkv_BTX.size:
        sizes = (*qkv_BTX.shape[:2], heads.queries, heads.keys, heads.dim)
        library = _library()
        count = library.declare("ek_attention_workspace", *[_L] * 5, result=_L)(*sizes)
        workspace = paddle.empty([max(count, 1)], "float32")
        call = library.declare("ek_attention_backward", _P, _P, _L, *[_P] * 6, *[_L] * 6, _I)
        call(
            qkv_BTX.data_ptr(),
            turns.data_ptr(),
            _turn_stride(turns),
            attend_from_BT.data_ptr(),
            out_BTX.data_ptr(),
            ctx.log_sum.data_ptr(),
            grad_BTX.data_ptr(),
            grad_qkv_BTX.data_ptr(),
            workspace.data_ptr(),
            *(count, *sizes, _DTYPES[qkv_BTX.dtype]),
        )
    return grad_qkv_BTX


def _library() -> Library:
    library = find_library().library
    assert library is not None, "native operators run without a library"
    return library


def _turn_stride(turns: paddle.Tensor) -> int:
    """Numbers from the turns of one column to those of the next."""
    return 2 * int(turns.shape[2] * turns.shape[3])


def _contiguous(tensor: paddle.Tensor) -> paddle.Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()
