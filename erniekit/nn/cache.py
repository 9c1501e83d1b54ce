"""Keys and values of the columns that a model has seen, for decoding."""

import paddle


class KVCache:
    """Room for `max_columns` columns of every layer, filled from the left.

    Every layer of a forward pass calls `extend`; the model calls `advance` at its end. Heads lie
    before columns in memory, as the matrix products of decoding want them: transposing the keys of
    500 columns for every new token took as long as everything else in the model.

        B rows, S columns, K key heads, D head dimension
    """

    def __init__(
        self, num_layers: int, batch: int, max_columns: int, num_kv_heads: int, head_dim: int, dtype: str
    ) -> None:
        shape = [batch, num_kv_heads, max_columns, head_dim]
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
        stored = []
        for whole_BKSD, new_BTKD in ((self._keys[layer], k_BTKD), (self._values[layer], v_BTKD)):
            whole_BKSD[:, :, self.length : stop] = new_BTKD.transpose([0, 2, 1, 3])
            # Views: nothing is copied here.
            stored.append(whole_BKSD[:, :, :stop].transpose([0, 2, 1, 3]))
        return stored[0], stored[1]

    def advance(self, num_columns: int) -> None:
        """The columns that every layer has stored now count as past."""
        self.length += num_columns
