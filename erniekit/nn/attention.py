"""Grouped-query attention with rotary positions and one fused projection [q | k | v].

B batch, T positions, N query heads, K key heads, D head dimension, H hidden size
"""

import paddle
from paddle import nn

from erniekit.nn.cache import KVCache
from erniekit.nn.linear import Linear
from erniekit.ops.attention import Visibility, attention
from erniekit.ops.rope import rotate


class Attention(nn.Layer):
    """Self-attention of one layer; N * D need not equal H."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        head_dim: int,
        bias: bool,
        dtype: str,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, head_dim
        self.dropout = 0.0
        self.qkv_proj = Linear(hidden_size, (num_heads + 2 * num_kv_heads) * head_dim, bias=bias, dtype=dtype)
        self.o_proj = Linear(num_heads * head_dim, hidden_size, bias=bias, dtype=dtype)

    def forward(
        self,
        x_BTH: paddle.Tensor,
        rotations_BTND: paddle.Tensor,
        visible: Visibility,
        cache: KVCache | None,
        layer: int,
    ) -> paddle.Tensor:
        batch, num_columns = x_BTH.shape[:2]
        heads = self.num_heads + self.num_kv_heads
        qkv = self.qkv_proj(x_BTH).reshape([batch, num_columns, heads + self.num_kv_heads, self.head_dim])
        qk_BTND, v_BTKD = qkv.split([heads, self.num_kv_heads], axis=2)
        q_BTND, k_BTKD = rotate(qk_BTND, rotations_BTND).split([self.num_heads, self.num_kv_heads], axis=2)
        if cache is not None:
            k_BTKD, v_BTKD = cache.extend(layer, k_BTKD, v_BTKD)
        dropout = self.dropout if self.training else 0.0
        out = attention(q_BTND, k_BTKD, v_BTKD, visible, dropout=dropout)
        return self.o_proj(out.reshape([batch, num_columns, self.num_heads * self.head_dim]))
