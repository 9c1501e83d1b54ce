"""Attention over a cache by the native kernels.

The first columns of a prompt attend to each other, by the kernel that training uses; later ones read
the cache. Either way their keys and values are written to it in one pass.
"""

import ctypes
from typing import Any

import paddle

from erniekit.ops.attention import Visibility
from erniekit.ops.cached_attention import cached_attention_reference
from erniekit.ops.kernels import library
from erniekit.ops.native.attention import self_attention
from erniekit.ops.native.matmul import TYPES, contiguous
from erniekit.ops.native.memory import empty

_P, _L, _I = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


def cached_attention(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    keys_BKSD: paddle.Tensor,
    values_BKSD: paddle.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
) -> paddle.Tensor:
    """As `cached_attention_reference`, which also serves other and mixed types; one head of turns will do."""
    heads: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
    if qkv_BTX.dtype not in TYPES or {keys_BKSD.dtype, values_BKSD.dtype} != {qkv_BTX.dtype}:
        return cached_attention_reference(qkv_BTX, turns, visible, keys_BKSD, values_BKSD, **heads)
    assert keys_BKSD.is_contiguous() and values_BKSD.is_contiguous(), "a cache is written in place"
    qkv_BTX, turns = contiguous(qkv_BTX), contiguous(turns)
    batch, columns = qkv_BTX.shape[:2]
    capacity = keys_BKSD.shape[2]
    assert visible.num_past + columns <= capacity
    place = (capacity, visible.num_past, batch, columns, num_heads, num_kv_heads, head_dim)
    inputs = (qkv_BTX.data_ptr(), turns.data_ptr(), 2 * int(turns.shape[2] * turns.shape[3]))
    cache = (keys_BKSD.data_ptr(), values_BKSD.data_ptr())
    kernels = library.load()
    store = kernels.declare("ek_cache_store", _P, _P, _L, _P, _P, *[_L] * 7, _I)
    store(*inputs, *cache, *place, TYPES[qkv_BTX.dtype])
    if visible.num_past == 0:
        return self_attention(qkv_BTX, turns, visible, **heads)
    attend_from_BT = contiguous(visible.attend_from_BT)
    out_BTX = empty([batch, columns, num_heads * head_dim], qkv_BTX.dtype)
    attend = kernels.declare("ek_cache_attend", _P, _P, _L, *[_P] * 4, *[_L] * 7, _I)
    attend(
        *(*inputs, attend_from_BT.data_ptr(), *cache, out_BTX.data_ptr(), *place),
        TYPES[qkv_BTX.dtype],
    )
    return out_BTX
