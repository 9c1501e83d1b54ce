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

from erniekit.ops import remake
from erniekit.ops.attention import Visibility, self_attention_reference
from erniekit.ops.kernels.library import BF16, FP32, Library, find_library
from erniekit.ops.native.memory import empty

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
    seen = _Seen(visible.attend_from_BT, visible.gaps_BT2)
    if paddle.is_grad_enabled() and not qkv_BTX.stop_gradient:
        return _SelfAttention.apply(qkv_BTX, turns, seen, heads, remake.keep(qkv_BTX))
    return _forward(qkv_BTX, turns, seen, heads, None)


class _Seen:
    """What queries see, as the kernels take it."""

    def __init__(self, attend_from_BT: paddle.Tensor, gaps_BT2: paddle.Tensor | None) -> None:
        self._attend_from = _contiguous(attend_from_BT)
        self._gaps = None if gaps_BT2 is None else _contiguous(gaps_BT2)

    def pointers(self) -> tuple[int, int | None]:
        """Addresses of the first visible columns and of the gaps."""
        return self._attend_from.data_ptr(), None if self._gaps is None else self._gaps.data_ptr()


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
        seen: _Seen,
        heads: _Heads,
        kept: remake.Recipe,
    ) -> paddle.Tensor:
        batch, columns = qkv_BTX.shape[:2]
        qkv_BTX = _contiguous(qkv_BTX)
        log_sum_BNT = empty([batch, heads.queries, columns], "float32")
        out_BTX = _forward(qkv_BTX, turns, seen, heads, log_sum_BNT)
        # Detached, since an output that its own node holds is a circle that nobody frees.
        ctx.kept = (kept, out_BTX.detach())
        ctx.log_sum, ctx.turns, ctx.seen, ctx.heads = log_sum_BNT, turns, seen, heads
        return out_BTX

    @staticmethod
    def backward(ctx: Any, grad_BTX: paddle.Tensor) -> tuple[paddle.Tensor, None]:
        kept, out_BTX = ctx.kept
        ctx.kept = None
        return _backward(_contiguous(remake.restore(kept)), out_BTX, grad_BTX, ctx), None


def _forward(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    seen: _Seen,
    heads: _Heads,
    log_sum_BNT: paddle.Tensor | None,
) -> paddle.Tensor:
    qkv_BTX, turns = _contiguous(qkv_BTX), _contiguous(turns)
    batch, columns = qkv_BTX.shape[:2]
    out_BTX = empty([batch, columns, heads.queries * heads.dim], qkv_BTX.dtype)
    if out_BTX.size:
        call = _library().declare("ek_attention_forward", _P, _P, _L, *[_P] * 4, *[_L] * 5, _I)
        call(
            qkv_BTX.data_ptr(),
            turns.data_ptr(),
            _turn_stride(turns),
            *seen.pointers(),
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
    turns, seen = _contiguous(ctx.turns), ctx.seen
    grad_qkv_BTX = empty(qkv_BTX.shape, qkv_BTX.dtype)
    if grad_qkv_BTX.size:
        sizes = (*qkv_BTX.shape[:2], heads.queries, heads.keys, heads.dim)
        library = _library()
        count = library.declare("ek_attention_workspace", *[_L] * 5, result=_L)(*sizes)
        workspace = empty([max(count, 1)], "float32")
        call = library.declare("ek_attention_backward", _P, _P, _L, *[_P] * 7, *[_L] * 6, _I)
        call(
            qkv_BTX.data_ptr(),
            turns.data_ptr(),
            _turn_stride(turns),
            *seen.pointers(),
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
