"""Keys and values of the columns that a model has seen, for decoding."""

import paddle


class KVCache:
    """Room for `max_columns` columns of every layer, filled from the left.

    Every layer of a forward pass calls `extend`; the model calls `advance` at its end.

        B rows, S columns, K key heads, D head dimension
    """

    def __init__(
        self, num_layers: int, batch: int, max_columns: int, num_kv_heads: int, head_dim: int, dtype: str
    ) -> None:
        shape = [batch, max_columns, num_kv_heads, head_dim]
        self._keys = [paddle.zeros(shape, dtype=dtype) for _ in range(num_layers)]
        self._values = [paddle.zeros(shape, dtype=dtype) for _ in range(num_layers)]
        self.max_columns = max_columns
        self.length = 0

    def extend(
        self, layer: int, k_BTKD: paddle.Tensor, v_BTKD: paddle.Tensor
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Store the T new columns of a layer; returns its keys and values [B, length + T, K, D]."""
        stop = self.length + k_BTKD.shape[1]
        assert stop <= self.max_columns, f"cache of {self.max_columns} columns asked for {stop}"
        self._keys[layer][:, self.length : stop] = k_BTKD
        self._values[layer][:, self.length : stop] = v_BTKD
        return self._keys[layer][:, :stop], self._values[layer][:, :stop]

    def advance(self, num_columns: int) -> None:
        """The columns that every layer has stored now count as past."""
        self.length += num_columns
