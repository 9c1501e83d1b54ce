"""Bytes and numbers of tensors in this machine's memory as numpy arrays, without a copy, and sums of them."""

from collections.abc import Callable, Sequence
from ctypes import c_char
from typing import Any

import numpy as np
import paddle

OPERATIONS: dict[str, Callable[..., Any]] = {"sum": np.add, "max": np.maximum, "min": np.minimum}

_WORDS = {
    paddle.float32: np.float32,
    paddle.float64: np.float64,
    paddle.float16: np.float16,
    paddle.bfloat16: np.uint16,
    paddle.int64: np.int64,
    paddle.int32: np.int32,
    paddle.int16: np.int16,
    paddle.int8: np.int8,
    paddle.uint8: np.uint8,
    paddle.bool: np.bool_,
    paddle.float8_e4m3fn: np.uint8,
    paddle.float8_e5m2: np.uint8,
}
_NOT_NUMBERS = (paddle.bool, paddle.float8_e4m3fn, paddle.float8_e5m2)
_CHUNK = 1 << 16  # numbers at a time, so that sums of bf16 stay in the cache


def bytes_of(tensor: paddle.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor as bytes; valid as long as the tensor lives."""
    assert tensor.is_contiguous(), f"a view of shape {tensor.shape} is not in one piece"
    size = num_bytes(tensor)
    if not size:
        return np.empty(0, np.uint8)
    return np.frombuffer(memoryview((c_char * size).from_address(tensor.data_ptr())), np.uint8)


def num_bytes(tensor: paddle.Tensor) -> int:
    """Bytes of the numbers of a tensor."""
    return int(tensor.size) * np.dtype(_WORDS[tensor.dtype]).itemsize


def combine(sources: Sequence[np.ndarray], out: np.ndarray, dtype: paddle.dtype, op: str) -> None:
    """Sum, maximum or minimum of equally long memories, in their order, so that all processes get one result.

    bf16 is summed in fp32 and rounded once, to the nearest even.

    Args:
        sources: bytes; `out` may be one of them.
    """
    if dtype in _NOT_NUMBERS:
        raise TypeError(f"{dtype} has no {op} over processes")
    operation, word = OPERATIONS[op], np.dtype(_WORDS[dtype])
    numbers, result = [source.view(word) for source in sources], out.view(word)
    wide = dtype == paddle.bfloat16
    with np.errstate(all="ignore"):  # what is not finite is the training's to tell
        for start in range(0, len(result), _CHUNK):
            part = slice(start, start + _CHUNK)
            total = _widen(numbers[0][part]) if wide else numbers[0][part].copy()
            for other in numbers[1:]:
                operation(total, _widen(other[part]) if wide else other[part], out=total)
            result[part] = _narrow(total) if wide else total


def _widen(bits: np.ndarray) -> np.ndarray:
    wide = bits.astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _narrow(numbers: np.ndarray) -> np.ndarray:
    """Rounded to bf16. Sums of bf16 leave a NaN's lower half empty, so that the rounding cannot overflow."""
    bits = numbers.view(np.uint32)
    bits += ((bits >> 16) & 1) + np.uint32(0x7FFF)
    return (bits >> 16).astype(np.uint16)
