"""The gated MLP: down(silu(gate(x)) * up(x)), gate and up as one matrix [H, 2I] = [gate | up]."""

import paddle
from paddle import nn

from erniekit.nn.linear import Linear
from erniekit.ops.swiglu import swiglu


class GatedMLP(nn.Layer):
    """x [..., H] to [..., H] through I channels."""

    def __init__(self, hidden_size: int, intermediate_size: int, *, bias: bool, dtype: str) -> None:
        super().__init__()
        self.up_gate_proj = Linear(hidden_size, 2 * intermediate_size, bias=bias, dtype=dtype)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=bias, dtype=dtype)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.down_proj(self.activation(self.up_gate_proj(x)))

    def activation(self, gate_up: paddle.Tensor) -> paddle.Tensor:
        """Between the matrices."""
        return swiglu(gate_up)
