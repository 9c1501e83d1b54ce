"""Keys and values of the columns that a model has seen, for decoding."""

import paddle

from erniekit.ops.attention import Visibility
from erniekit.ops.cached_attention import cached_attention
from erniekit.ops.rounding import KVRounding


class KVCache:
    """Room for `max_columns` columns of every layer, filled from the left.

    Every layer of a forward pass calls `attend`; the model calls `advance` at its end.

        B rows, S columns, K key heads, D head dimension

    Attributes:
        keys: of each layer, [B, K, S, D], turned by their positions; `values` alike. What lies behind
            `length` is not initialised.
        length: columns that are there.
    """

    def __init__(
        self, num_layers: int, batch: int, max_columns: int, num_kv_heads: int, head_dim: int, dtype: str
    ) -> None:
        shape = [batch, num_kv_heads, max_columns, head_dim]
        self.keys = [paddle.empty(shape, dtype=dtype) for _ in range(num_layers)]
        self.values = [paddle.empty(shape, dtype=dtype) for _ in range(num_layers)]
        self.max_columns = max_columns
        self.num_kv_heads, self.head_dim = num_kv_heads, head_dim
        self.length = 0

    def attend(
        self,
        layer: int,
        qkv_BTX: paddle.Tensor,
        turns: paddle.Tensor,
        visible: Visibility,
        *,
        num_heads: int,
        rounding: KVRounding | None = None,
    ) -> paddle.Tensor:
        """Store the T new columns of a layer and attend from them, [B, T, N D]; see `cached_attention`."""
        stop = self.length + qkv_BTX.shape[1]
        assert stop <= self.max_columns, f"cache of {self.max_columns} columns asked for {stop}"
        assert visible.num_past == self.length
        return cached_attention(
            qkv_BTX,
            turns,
            visible,
            self.keys[layer],
            self.values[layer],
            num_heads=num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            rounding=rounding,
        )

    def advance(self, num_columns: int) -> None:
        """The columns that every layer has stored now count as past."""
        self.length += num_columns
