"""Rotary position embedding (Su et al. 2021) in the interleaved form of ERNIE 4.5 and GPT-J.

Neighbouring channels (2i, 2i+1) are one complex number, turned by position * theta^(-2i/d):
    out[2i] = x[2i] cos - x[2i+1] sin,   out[2i+1] = x[2i+1] cos + x[2i] sin.
Models that pair channel i with i + d/2 (Llama, Qwen) convert by permuting rows of q and k.

    B batch, T positions, N heads, D head dimension
"""

from typing import Any

import paddle
from paddle.autograd import PyLayer

from erniekit.ops.backend import choose


def rotations(
    position_ids_BT: paddle.Tensor, head_dim: int, theta: float, *, num_heads: int = 1
) -> paddle.Tensor:
    """The rotation of each position as complex64 [B, T, num_heads, D/2]; angles are computed in fp32.

    A forward pass needs them once for all layers. Repeated for `num_heads` heads, every layer
    is spared a broadcast that costs 15 times the product itself.
    """
    exponents = paddle.arange(0, head_dim, 2, dtype="float32") / head_dim
    frequencies = 1.0 / (theta**exponents)
    angles = position_ids_BT.astype("float32").unsqueeze(-1) * frequencies
    once = paddle.complex(paddle.cos(angles), paddle.sin(angles)).unsqueeze(2)
    batch, num_columns = position_ids_BT.shape
    return once.expand([batch, num_columns, num_heads, head_dim // 2]).contiguous()


def rotate(x_BTND: paddle.Tensor, rotations_BTND: paddle.Tensor) -> paddle.Tensor:
    """Queries or keys turned by their positions, in fp32, cast back to their type.

    `rotations_BTND` is what `rotations` gives, for N heads or for one.
    """
    return choose("rotate")(x_BTND, rotations_BTND)


def rotate_reference(x_BTND: paddle.Tensor, rotations_BTND: paddle.Tensor) -> paddle.Tensor:
    """`rotate` by plain operators."""
    return _turn(x_BTND.astype("float32"), rotations_BTND).astype(x_BTND.dtype)


def rotate_cpu(x_BTND: paddle.Tensor, rotations_BTND: paddle.Tensor) -> paddle.Tensor:
    """The same; the backward pass turns the gradient back and saves nothing."""
    if x_BTND.dtype != paddle.float32:
        return _Rotate.apply(x_BTND.astype("float32"), rotations_BTND).astype(x_BTND.dtype)
    return _Rotate.apply(x_BTND, rotations_BTND)


class _Rotate(PyLayer):
    @staticmethod
    def forward(ctx: Any, x_BTND: paddle.Tensor, rotations_BTND: paddle.Tensor) -> paddle.Tensor:
        ctx.rotations = rotations_BTND
        return _turn(x_BTND, rotations_BTND)

    @staticmethod
    def backward(ctx: Any, grad_BTND: paddle.Tensor) -> tuple[paddle.Tensor, None]:
        return _turn(grad_BTND, ctx.rotations.conj()), None


def _turn(x_BTND: paddle.Tensor, rotations_BTND: paddle.Tensor) -> paddle.Tensor:
    shape = x_BTND.shape
    pairs = x_BTND.reshape([*shape[:-1], shape[-1] // 2, 2])
    return paddle.as_real(paddle.as_complex(pairs) * rotations_BTND).reshape(shape)
