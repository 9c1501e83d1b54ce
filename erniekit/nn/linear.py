"""A linear layer in Paddle's layout, weight [in, out]."""

import paddle
from paddle import nn

from erniekit.ops.linear import linear


class Linear(nn.Layer):
    """y = x weight + bias. Weights are filled in later, by a checkpoint or by the model's initialisation."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.weight = self.create_parameter(
            [in_features, out_features], dtype=dtype, default_initializer=_ZERO
        )
        self.bias: paddle.Tensor | None = None
        if bias:
            self.bias = self.create_parameter(
                [out_features], dtype=dtype, is_bias=True, default_initializer=_ZERO
            )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.product(x, self.bias)

    def product(self, x: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        """x weight + bias, with whatever is beside the weight."""
        return linear(x, self.weight, bias)

    def whole_weight(self) -> paddle.Tensor:
        """The matrix of an output layer, whose logits are computed elsewhere; adapters add to it."""
        return self.weight


_ZERO = nn.initializer.Constant(0.0)
