"""SwiGLU (Shazeer 2020): silu(gate) * up, gate and up being the halves of one tensor.

With s = sigmoid(gate): d(up) = g gate s,  d(gate) = g up (s + gate s (1 - s)).
"""

from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from erniekit.ops.backend import choose, to_arithmetic, to_storage


def swiglu(gate_up: paddle.Tensor) -> paddle.Tensor:
    """gate_up [..., 2I] = [gate | up] to [..., I]."""
    return choose("swiglu")(gate_up)


def swiglu_reference(gate_up: paddle.Tensor) -> paddle.Tensor:
    """`swiglu` by plain operators."""
    dtype = gate_up.dtype
    gate, up = to_arithmetic(*gate_up.split(2, axis=-1))
    return to_storage(F.silu(gate) * up, dtype)


def swiglu_cpu(gate_up: paddle.Tensor) -> paddle.Tensor:
    """The same, keeping only gate_up for the backward pass."""
    (wide,) = to_arithmetic(gate_up)
    return to_storage(_SwiGLU.apply(wide), gate_up.dtype)


def swiglu_gpu(gate_up: paddle.Tensor) -> paddle.Tensor:
    """The same by Paddle's fused operator (on a CPU it is slower than the above; GPU not executed in CI)."""
    return F.swiglu(gate_up)


class _SwiGLU(PyLayer):
    @staticmethod
    def forward(ctx: Any, gate_up: paddle.Tensor) -> paddle.Tensor:
        ctx.save_for_backward(gate_up)
        gate, up = gate_up.split(2, axis=-1)
        return F.sigmoid(gate).multiply_(gate).multiply_(up)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        (gate_up,) = ctx.saved_tensor()
        gate, up = gate_up.split(2, axis=-1)
        sigmoid = F.sigmoid(gate)
        silu = gate.multiply_(sigmoid)
        grad_up = grad * silu
        # s + silu (1 - s), written so that two temporaries are enough.
        slope = sigmoid.add_(silu.subtract_(silu * sigmoid))
        grad_gate = up.multiply_(grad).multiply_(slope)
        return paddle.concat([grad_gate, grad_up], axis=-1)
