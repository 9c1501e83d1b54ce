"""RMSNorm as a layer."""

import paddle
from paddle import nn

from erniekit.ops.norm import add_rms_norm, rms_norm


class RMSNorm(nn.Layer):
    """The norm of a residual stream; see `erniekit.ops.norm`."""

    def __init__(self, size: int, *, epsilon: float, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.epsilon = epsilon
        self.weight = self.create_parameter(
            [size], dtype=dtype, default_initializer=nn.initializer.Constant(1.0)
        )

    def forward(
        self, x: paddle.Tensor, delta: paddle.Tensor | None = None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The stream x + delta (x itself without a delta), and that normalised; both [..., D]."""
        if delta is None:
            return x, self.normalise(x)
        return add_rms_norm(x, delta, self.weight, self.epsilon, normalise=self.normalise)

    def normalise(self, x: paddle.Tensor) -> paddle.Tensor:
        """The stream normalised, where that is an operator of its own."""
        return rms_norm(x, self.weight, self.epsilon)
