"""Activations on their way into a matrix of few bits: rotated, and rounded to the numbers of a format.

The rounding is emulated: the result is what the format's number times its scale is, in the type of x. So a
product in fp32 is that of the format's own numbers, up to the order of its sum.

    M rows, K features, E experts
"""

from dataclasses import dataclass

import numpy as np
import paddle

from erniekit.ops.backend import to_arithmetic, to_storage
from erniekit.ops.hadamard import hadamard

LARGEST = {"int8": 127.0, "e4m3": 448.0}
_FLOATS = {"e4m3": "float8_e4m3fn"}


@dataclass(frozen=True)
class Rounding:
    """How inputs are rounded.

    number: int8 or e4m3. scale: fp32 [1], or [E] for experts, found beforehand; None where every `tile`
    features of a row have a scale of their own.
    """

    number: str
    scale: paddle.Tensor | None = None
    tile: int | None = None

    def apply(self, x_MK: paddle.Tensor, offsets: paddle.Tensor | None = None) -> paddle.Tensor:
        """The rounded rows; `offsets` [E + 1] say whose they are where there is a scale an expert."""
        dtype = x_MK.dtype
        (wide,) = to_arithmetic(x_MK)
        if self.scale is None:
            return to_storage(
                _by_tile(wide.astype("float32"), self.number, self.tile or x_MK.shape[-1]), dtype
            )
        scale = self.scale
        if offsets is not None and scale.shape[0] > 1:
            counts = offsets[1:] - offsets[:-1]
            scale = paddle.repeat_interleave(scale, counts).unsqueeze(-1)
        return to_storage(nearest(wide.astype("float32") / scale, self.number) * scale, dtype)


@dataclass(frozen=True)
class KVRounding:
    """How keys (turned by their positions) and values are rounded before anybody attends to them.

    keys, values: fp32 [K, D], a scale for each channel of each key head.
    """

    number: str
    keys: paddle.Tensor
    values: paddle.Tensor

    @classmethod
    def of(cls, number: str, keys: np.ndarray, values: np.ndarray) -> "KVRounding":
        """Of the largest key and value of each channel, fp32 [K * D]."""
        scales = [
            np.maximum(largest, np.float32(1e-30)) / np.float32(LARGEST[number]) for largest in (keys, values)
        ]
        return cls(number, *(paddle.to_tensor(scale) for scale in scales))

    def apply(self, keys: paddle.Tensor, values: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The rounded keys and values [B, T, K, D]."""
        return self._rounded(keys, self.keys), self._rounded(values, self.values)

    def _rounded(self, x_BTKD: paddle.Tensor, scale: paddle.Tensor) -> paddle.Tensor:
        (wide,) = to_arithmetic(x_BTKD)
        by_channel = scale.reshape(x_BTKD.shape[2:])
        return to_storage(
            nearest(wide.astype("float32") / by_channel, self.number) * by_channel, x_BTKD.dtype
        )


def nearest(scaled: paddle.Tensor, number: str) -> paddle.Tensor:
    """The nearest value of a format to each fp32 number, the largest one beyond it."""
    largest = LARGEST[number]
    cut = paddle.clip(scaled, -largest, largest)
    if number == "int8":
        return paddle.round(cut)  # ties to even
    return cut.astype(_FLOATS[number]).astype("float32")


def _by_tile(x_MK: paddle.Tensor, number: str, tile: int) -> paddle.Tensor:
    rows, features = x_MK.shape
    missing = -features % tile
    if missing:
        x_MK = paddle.concat([x_MK, paddle.zeros([rows, missing])], axis=-1)
    parts = x_MK.reshape([rows, -1, tile])
    scale = parts.abs().max(axis=-1, keepdim=True) / LARGEST[number]
    scale = paddle.where(scale > 0, scale, paddle.ones_like(scale))
    return (nearest(parts / scale, number) * scale).reshape([rows, -1])[:, :features]


def rotate(x: paddle.Tensor, size: int) -> paddle.Tensor:
    """x H of rows [..., K] in blocks of `size` features."""
    (wide,) = to_arithmetic(x)
    blocks = wide.reshape([-1, size])
    turned = paddle.matmul(blocks, paddle.to_tensor(hadamard(size)).astype(blocks.dtype))
    return to_storage(turned.reshape(x.shape), x.dtype)
