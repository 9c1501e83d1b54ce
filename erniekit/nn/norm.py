"""RMSNorm as a layer."""

import paddle
from paddle import nn

from erniekit.ops.norm import rms_norm


class RMSNorm(nn.Layer):
    """See `erniekit.ops.norm.rms_norm`."""

    def __init__(self, size: int, *, epsilon: float, dtype: str) -> None:
        super().__init__(dtype=dtype)
        self.epsilon = epsilon
        self.weight = self.create_parameter(
            [size], dtype=dtype, default_initializer=nn.initializer.Constant(1.0)
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return rms_norm(x, self.weight, self.epsilon)
