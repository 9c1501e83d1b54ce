"""Updates of AdamW by the native kernels: one call for all parameters.

The fp32 master of a bf16 parameter is held as the parameter and 16 bits more, the low half of its
bits: see `ops/kernels/src/adamw.cpp`. It costs half of what a master of its own does.
"""

import ctypes
from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle

from erniekit.ops.kernels import library
from erniekit.optim.update import Entry, Numbers

_P, _LONG = ctypes.c_void_p, ctypes.c_long


class _Parameter(ctypes.Structure):
    """`Parameter` of adamw.cpp."""

    _fields_ = (
        *(("weight", _P), ("remainder", _P), ("gradient", _P), ("first", _P), ("second", _P)),
        *(("count", ctypes.c_int64), ("offset", ctypes.c_int64)),
        *(("rate", ctypes.c_float), ("keep", ctypes.c_float)),
    )


class _Update(ctypes.Structure):
    """`Update` of adamw.cpp."""

    _fields_ = (
        *((name, ctypes.c_float) for name in ("clip", "beta1", "beta2", "rest1", "rest2")),
        *(("second_scale", ctypes.c_float), ("epsilon", ctypes.c_float), ("number", ctypes.c_uint64)),
    )


class NativeUpdate:
    """Holds what bf16 parameters lack of their fp32 masters."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self._parameters = parameters
        self._remainders = {
            name: paddle.zeros(parameter.shape, dtype="int16")
            for name, parameter in parameters.items()
            if parameter.dtype == paddle.bfloat16
        }

    @staticmethod
    def takes(parameters: dict[str, Any]) -> bool:
        """Whether the kernels know the types and layouts of all parameters."""
        return all(
            parameter.dtype in (paddle.float32, paddle.bfloat16) and parameter.is_contiguous()
            for parameter in parameters.values()
        )

    def master_names(self) -> list[str]:
        """Parameters that have a master of their own."""
        return list(self._remainders)

    def num_bytes(self) -> int:
        """Bytes of what is held beside the parameters."""
        return sum(2 * remainder.size for remainder in self._remainders.values())

    def master(self, name: str) -> np.ndarray:
        """The fp32 master of a parameter, copied."""
        values = np.empty(self._parameters[name].shape, np.float32)
        self._convert(name, values, split=False)
        return values

    def set_master(self, name: str, values: np.ndarray) -> None:
        """Take over a master, and what follows from it for the parameter."""
        self._convert(name, np.ascontiguousarray(values, np.float32), split=True)

    def _convert(self, name: str, values: np.ndarray, *, split: bool) -> None:
        library.load().declare("ek_master", _LONG, _P, _P, _P, ctypes.c_int)(
            values.size,
            self._parameters[name].data_ptr(),
            self._remainders[name].data_ptr(),
            values.ctypes.data,
            split,
        )

    def square_sum(self, gradients: Iterable[paddle.Tensor]) -> float:
        """Sum of the squares of all numbers of all gradients, in an order that is always the same."""
        tensors = [_row_by_row(gradient) for gradient in gradients]
        table = (_Parameter * len(tensors))()
        for row, tensor in zip(table, tensors, strict=True):
            row.gradient, row.count = tensor.data_ptr(), tensor.size
        total = ctypes.c_double()
        library.load().declare("ek_square_sum", _LONG, _P, _P)(
            len(tensors), ctypes.addressof(table), ctypes.addressof(total)
        )
        return total.value

    def update(self, entries: list[Entry], numbers: Numbers) -> None:
        """One update of the parameters, their masters and their moments."""
        table = (_Parameter * len(entries))()
        held = []  # copies of gradients that lie otherwise, until the call is over
        for row, entry in zip(table, entries, strict=True):
            gradient = _row_by_row(entry.gradient)
            held.append(gradient)
            remainder = self._remainders.get(entry.name)
            row.weight, row.gradient = entry.parameter.data_ptr(), gradient.data_ptr()
            row.remainder = None if remainder is None else remainder.data_ptr()
            row.first, row.second = entry.exp_avg.data_ptr(), entry.exp_avg_sq.data_ptr()
            row.count, row.offset = gradient.size, entry.offset
            row.rate = entry.rate * numbers.first_correction
            row.keep = 1.0 - entry.rate * entry.decay
        update = _Update(
            clip=numbers.clip,
            beta1=numbers.beta1,
            beta2=numbers.beta2,
            rest1=1.0 - numbers.beta1,
            rest2=1.0 - numbers.beta2,
            second_scale=numbers.second_correction,
            epsilon=numbers.epsilon,
            number=numbers.number,
        )
        narrow = bool(entries) and entries[0].exp_avg.dtype == paddle.bfloat16
        library.load().declare("ek_adamw", ctypes.c_int, _LONG, _P, _P)(
            library.BF16 if narrow else library.FP32,
            len(entries),
            ctypes.addressof(table),
            ctypes.addressof(update),
        )


def _row_by_row(gradient: paddle.Tensor) -> paddle.Tensor:
    assert gradient.dtype == paddle.float32, gradient.dtype
    return gradient if gradient.is_contiguous() else gradient.contiguous()
