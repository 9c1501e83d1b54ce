"""Token embedding."""

import paddle
from paddle import nn

from erniekit.ops.embedding import embedding


class Embedding(nn.Layer):
    """Rows of weight [V, D] by token id."""

    def __init__(self, vocab_size: int, hidden_size: int, *, dtype: str) -> None:
        super().__init__(dtype=dtype)
        zero = nn.initializer.Constant(0.0)
        self.weight = self.create_parameter([vocab_size, hidden_size], dtype=dtype, default_initializer=zero)

    def forward(self, ids: paddle.Tensor) -> paddle.Tensor:
        return embedding(ids, self.weight)
