"""Grouped-query attention with rotary positions and one fused projection [q | k | v].

B batch, T positions, N query heads, K key heads, D head dimension, H hidden size
"""

import paddle
from paddle import nn

from erniekit.nn.cache import KVCache
from erniekit.nn.linear import Linear
from erniekit.ops.attention import Visibility, attention, self_attention, turned_heads
from erniekit.ops.rounding import KVRounding


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
        self.kv_rounding: KVRounding | None = None
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
        qkv_BTX = self.qkv_proj(x_BTH)
        if cache is None:
            out = self.core_attention(qkv_BTX, rotations_BTND, visible)
        else:
            out = cache.attend(
                layer, qkv_BTX, rotations_BTND, visible, num_heads=self.num_heads, rounding=self.kv_rounding
            )
        return self.o_proj(out)

    def core_attention(
        self, qkv_BTX: paddle.Tensor, rotations_BTND: paddle.Tensor, visible: Visibility
    ) -> paddle.Tensor:
        """What lies between the projections, [B, T, N D]."""
        dropout = self.dropout if self.training else 0.0
        if self.kv_rounding is not None:
            queries, keys, values = self.turn(qkv_BTX, rotations_BTND)
            out = attention(queries, *self.kv_rounding.apply(keys, values), visible, dropout=dropout)
            return out.reshape([*qkv_BTX.shape[:2], self.num_heads * self.head_dim])
        return self_attention(
            qkv_BTX, rotations_BTND, visible, **self._heads(), dropout=dropout, turn=self.turn
        )

    def turn(
        self, qkv_BTX: paddle.Tensor, rotations_BTND: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]:
        """Queries, keys and values, turned, where that is an operator of its own."""
        return turned_heads(qkv_BTX, rotations_BTND, **self._heads())

    def _heads(self) -> dict[str, int]:
        return {"num_heads": self.num_heads, "num_kv_heads": self.num_kv_heads, "head_dim": self.head_dim}
