"""Where tensors lie that no operator makes, and memory that the C library holds although nothing uses it.

`cli/launch.py` tells the library to keep what is freed, since getting it again costs page faults.
What a checkpoint leaves behind when it is read lies in holes between the parameters, too small for
the tensors of a training step; given back once, before training, it saves as much as the weights take.
"""

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import paddle

from erniekit.ops.backend import choose


def release_free_memory() -> None:
    """Give what is free back to the system, where the C library (glibc) can do so."""
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)


def empty(shape: Sequence[int], dtype: Any = "float32") -> paddle.Tensor:
    """As `paddle.empty`, where gradients and results of operators lie, so that what they leave is used."""
    return choose("empty")(shape, dtype)


def empty_reference(shape: Sequence[int], dtype: Any = "float32") -> paddle.Tensor:
    """`empty` of Paddle's memory."""
    return paddle.empty(shape, dtype=dtype)
