"""Tensors for the results of native operators, in memory of `ops/kernels/src/memory.cpp`."""

import ctypes
import math
import weakref
from collections import deque
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
    take_back()
    place = library.load().take_memory(count * size)
    if place is None:
        return paddle.empty(shape, dtype=dtype)
    block = _Block(place, tuple(shape), typestr)
    _lend(block, place)
    tensor = paddle.from_dlpack(np.asarray(block))
    return tensor.view("bfloat16") if name == "bfloat16" else tensor


class _Block:
    """Memory under an array; the array holds it, and so the tensor."""

    def __init__(self, place: int, shape: tuple[int, ...], typestr: str) -> None:
        self.__array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (place, False),
            "version": 3,
        }


class _Lent(weakref.ref):  # type: ignore[type-arg]
    """A block that is in use, and where it lies."""

    __slots__ = ("place",)
    place: int


# Paddle lets go of a tensor's memory inside a lock of its own, in whatever thread that is. Python code there
# would let another thread run, which may want the same lock while it holds the interpreter: both wait for
# ever. So what happens there is one call of C (`append`), and memory is given back when more is wanted.
_lent: dict[int, _Lent] = {}
_over: deque[_Lent] = deque()


def _lend(block: _Block, place: int) -> None:
    lent = _Lent(block, _over.append)
    lent.place = place
    _lent[id(lent)] = lent


def take_back() -> None:
    """Give back what nobody uses any more; `empty` does it before it takes."""
    give = library.load().give_memory
    while True:
        try:
            lent = _over.popleft()
        except IndexError:  # of several threads one has the last
            return
        del _lent[id(lent)]
        give(ctypes.c_void_p(lent.place))
