"""SwiGLU by the native kernels; its result is cheap to make again from the input, and is marked so."""

from ctypes import c_int, c_long, c_void_p
from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops import remake
from erniekit.ops.kernels import library
from erniekit.ops.native.matmul import TYPES, contiguous, takes
from erniekit.ops.native.memory import empty
from erniekit.ops.swiglu import swiglu_reference


def swiglu_native(gate_up: paddle.Tensor) -> paddle.Tensor:
    """As `swiglu_reference`, which serves other types."""
    if not takes(gate_up) or gate_up.shape[-1] % 2:
        return swiglu_reference(gate_up)
    gate_up = contiguous(gate_up)
    if not paddle.is_grad_enabled():
        return _forward(gate_up)
    kept = remake.keep(gate_up)
    return remake.mark(_SwiGLU.apply(gate_up, kept), _again, kept)


def _size(gate_up: paddle.Tensor) -> tuple[int, int]:
    """Rows, and the width of a result."""
    width = gate_up.shape[-1] // 2
    return (gate_up.size // (2 * width) if width else 0), width


def _again(kept: remake.Recipe) -> paddle.Tensor:
    return _forward(remake.restore(kept))


def _forward(gate_up: paddle.Tensor) -> paddle.Tensor:
    rows, width = _size(gate_up)
    out = empty([*gate_up.shape[:-1], width], dtype=gate_up.dtype)
    library.load().declare("ek_swiglu", c_int, c_long, c_long, c_void_p, c_void_p)(
        TYPES[gate_up.dtype], rows, width, gate_up.data_ptr(), out.data_ptr()
    )
    return out


class _SwiGLU(PyLayer):
    @staticmethod
    def forward(ctx: Any, gate_up: paddle.Tensor, kept: remake.Recipe) -> paddle.Tensor:
        ctx.kept = kept
        return _forward(gate_up)

    @staticmethod
    def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
        gate_up = remake.restore(ctx.kept)
        ctx.kept = None
        rows, width = _size(gate_up)
        grad, out = contiguous(grad), empty(gate_up.shape, dtype=gate_up.dtype)
        library.load().declare("ek_swiglu_backward", c_int, c_long, c_long, c_void_p, c_void_p, c_void_p)(
            TYPES[gate_up.dtype], rows, width, gate_up.data_ptr(), grad.data_ptr(), out.data_ptr()
        )
        return out
