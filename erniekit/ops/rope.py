"""Rotary position embedding (Su et al. 2021) in the interleaved form of ERNIE 4.5 and GPT-J.

Neighbouring channels (2i, 2i+1) are one complex number, turned by position * theta^(-2i/d):
    out[2i] = x[2i] cos - x[2i+1] sin,   out[2i+1] = x[2i+1] cos + x[2i] sin.
Models that pair channel i with i + d/2 (Llama, Qwen) convert by permuting rows of q and k.

    B batch, T positions, N heads, D head dimension
"""

import paddle


def rotations(position_ids_BT: paddle.Tensor, head_dim: int, theta: float) -> paddle.Tensor:
    """The rotation of each position as complex64 [B, T, 1, D/2]; angles are computed in fp32."""
    exponents = paddle.arange(0, head_dim, 2, dtype="float32") / head_dim
    frequencies = 1.0 / (theta**exponents)
    angles = position_ids_BT.astype("float32").unsqueeze(-1) * frequencies
    return paddle.complex(paddle.cos(angles), paddle.sin(angles)).unsqueeze(2)


def rotate(x_BTND: paddle.Tensor, rotations_BT1D: paddle.Tensor) -> paddle.Tensor:
    """Queries or keys turned by their positions, in fp32, cast back to their type."""
    shape = x_BTND.shape
    pairs = x_BTND.astype("float32").reshape([*shape[:-1], shape[-1] // 2, 2])
    turned = paddle.as_real(paddle.as_complex(pairs) * rotations_BT1D)
    return turned.reshape(shape).astype(x_BTND.dtype)
