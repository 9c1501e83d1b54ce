"""SwiGLU (Shazeer 2020): silu(gate) * up, gate and up being the halves of one tensor."""

import paddle
import paddle.nn.functional as F

from erniekit.ops.backend import choose, to_arithmetic, to_storage


def swiglu(gate_up: paddle.Tensor) -> paddle.Tensor:
    """gate_up [..., 2I] = [gate | up] to [..., I]."""
    return choose("swiglu")(gate_up)


def swiglu_reference(gate_up: paddle.Tensor) -> paddle.Tensor:
    """`swiglu` by plain operators."""
    dtype = gate_up.dtype
    gate, up = to_arithmetic(*gate_up.split(2, axis=-1))
    return to_storage(F.silu(gate) * up, dtype)


def swiglu_fused(gate_up: paddle.Tensor) -> paddle.Tensor:
    """The same by Paddle's fused operator, which keeps gate_up only (on a GPU not executed in CI).

    The reference keeps both halves and silu(gate) as well: 38 MB more a layer for 2,048 positions
    of I = 1,536. On a CPU it is quicker all the same, 12 ms forward and backward against 16.
    """
    (wide,) = to_arithmetic(gate_up)
    return to_storage(F.swiglu(wide), gate_up.dtype)
