"""Raw tensors from one number format to another, bit by bit in numpy.

numpy has no bfloat16, so it travels as uint16; rounding is to nearest, ties to even, as hardware
does it. Widening is exact. What a format cannot hold is an error, never an infinity.
"""

import numpy as np

from erniekit.errors import CheckpointError
from erniekit.ops.number_formats import narrowed

# word of export_dtype -> word of safetensors
EXPORT_DTYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
# word of safetensors -> word of config.json
CONFIG_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
# Which formats hold every value of which.
_HELD_BY = {"F32": {"F32"}, "BF16": {"BF16", "F32"}, "F16": {"F16", "F32"}}


def is_exact(source: str, target: str) -> bool:
    """Whether every value of `source` has itself as a value in `target`."""
    return source == target or target in _HELD_BY.get(source, ())


def convert(name: str, array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Convert a raw array; the input itself when nothing is to be done.

    Args:
        name: of the tensor, for messages.
        array: float32, float16, or uint16 for bfloat16.

    Raises:
        CheckpointError: the format is not a floating-point one, or a finite value does not fit.
    """
    if source == target:
        return array
    if source not in _HELD_BY:
        raise CheckpointError(f"{name}: cannot convert {source} to {target}; write export_dtype: auto")
    wide = _widen(array, source)
    if target == "F32":
        return wide
    if target == "BF16":
        narrow = _to_bfloat16(wide)
        finite = (narrow & 0x7F80) != 0x7F80
    else:
        with np.errstate(over="ignore"):
            narrow = wide.astype(np.float16)
        finite = np.isfinite(narrow)
    if not np.array_equal(finite, np.isfinite(wide)):
        largest = float(np.abs(wide[np.isfinite(wide)]).max())
        raise CheckpointError(
            f"{name}: holds {largest:g}, which is beyond the range of {CONFIG_DTYPES[target]}; "
            "write export_dtype: fp32" + (" or bf16" if target == "F16" else "")
        )
    return narrow


def _widen(array: np.ndarray, source: str) -> np.ndarray:
    if source == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _to_bfloat16(wide: np.ndarray) -> np.ndarray:
    result = narrowed(wide)
    not_a_number = np.isnan(wide)
    if not_a_number.any():
        # Rounding could carry a NaN's payload away and leave an infinity.
        bits = wide[not_a_number].view(np.uint32)
        result[not_a_number] = ((bits >> 16) | 0x40).astype(np.uint16)
    return result
