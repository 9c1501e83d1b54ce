"""SwiGLU (Shazeer 2020): silu(gate) * up, gate and up being the halves of one tensor."""

import paddle
import paddle.nn.functional as F

from erniekit.ops.backend import to_arithmetic, to_storage


def swiglu(gate_up: paddle.Tensor) -> paddle.Tensor:
    """gate_up [..., 2I] = [gate | up] to [..., I]."""
    dtype = gate_up.dtype
    gate, up = to_arithmetic(*gate_up.split(2, axis=-1))
    return to_storage(F.silu(gate) * up, dtype)
