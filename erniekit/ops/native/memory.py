"""Tensors for the results of native operators, in memory of `ops/kernels/src/memory.cpp`."""

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle

from erniekit.ops.kernels import library

# Smaller ones are left to Paddle: a block is whole pages.
SMALLEST = 1 << 16
# Safetensors-like names of numpy; bf16 is unknown to it and goes as int16.
_TYPES = {"float32": ("<f4", 4), "bfloat16": ("<i2", 2), "int16": ("<i2", 2), "uint8": ("|u1", 1)}


def empty(shape: Sequence[int], dtype: Any = "float32") -> paddle.Tensor:
    """As `paddle.empty`: contents undefined, freed when the last tensor over it is."""
    name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("paddle.")
    typestr, size = _TYPES.get(name, ("", 0))
    count = math.prod(shape)
    if count * size < SMALLEST:
        return paddle.empty(shape, dtype=dtype)
    place = library.load().take_memory(count * size)
    if place is None:
        return paddle.empty(shape, dtype=dtype)
    block = _Block(place, tuple(shape), typestr)
    tensor = paddle.from_dlpack(np.asarray(block))
    return tensor.view("bfloat16") if name == "bfloat16" else tensor


class _Block:
    """Gives its memory back when the array over it, and so the tensor, is no more."""

    def __init__(self, place: int, shape: tuple[int, ...], typestr: str) -> None:
        self._place = place
        self._give = library.load().give_memory
        self.__array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (place, False),
            "version": 3,
        }

    def __del__(self) -> None:
        self._give(ctypes.c_void_p(self._place))
