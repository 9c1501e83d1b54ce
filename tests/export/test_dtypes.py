"""Number formats against values worked by hand and against an independent rounding."""

import numpy as np
import pytest

from erniekit.errors import CheckpointError
from erniekit.export.dtypes import convert, is_exact


def bits(value: float) -> int:
    return int(convert("w", np.array([value], dtype=np.float32), "F32", "BF16")[0])


def test_bfloat16_by_hand() -> None:
    assert bits(1.0) == 0x3F80
    assert bits(-2.0) == 0xC000
    # 1 + 2^-8 lies half way between 1 and 1 + 2^-7: to the even one, 1
    assert bits(1.0 + 2.0**-8) == 0x3F80
    # 1 + 3 * 2^-8 lies half way between 1 + 2^-7 and 1 + 2^-6: to the even one, above
    assert bits(1.0 + 3 * 2.0**-8) == 0x3F82
    assert bits(1.0 + 2.0**-8 + 2.0**-20) == 0x3F81
    assert bits(float("inf")) == 0x7F80
    assert bits(float("nan")) & 0x7FFF > 0x7F80


def test_bfloat16_is_nearest_of_all_neighbours() -> None:
    wide = np.random.default_rng(0).normal(scale=10.0, size=500).astype(np.float32)
    narrow = convert("w", wide, "F32", "BF16")
    back = convert("w", narrow, "BF16", "F32").astype(np.float64)
    for step in (-1, 1):
        neighbour = convert("w", (narrow.astype(np.int32) + step).astype(np.uint16), "BF16", "F32")
        assert (np.abs(back - wide) <= np.abs(neighbour.astype(np.float64) - wide)).all()


@pytest.mark.parametrize("narrow", ["BF16", "F16"])
def test_widening_and_back_is_exact(narrow: str) -> None:
    every = np.arange(2**16, dtype=np.uint16)
    if narrow == "F16":
        every = every.view(np.float16)
        every = every[np.isfinite(every)]
    else:
        every = every[(every & 0x7F80) != 0x7F80]
    wide = convert("w", every, narrow, "F32")
    again = convert("w", wide, "F32", narrow)
    assert again.tobytes() == every.tobytes()
    assert is_exact(narrow, "F32") and not is_exact("F32", narrow)


def test_overflow_of_fp16_names_the_tensor() -> None:
    with pytest.raises(CheckpointError, match="model.norm.weight: holds 70000, .*bf16"):
        convert("model.norm.weight", np.array([1.0, 70000.0], dtype=np.float32), "F32", "F16")


def test_rounding_up_to_infinity_is_an_error() -> None:
    largest = np.array([np.finfo(np.float32).max], dtype=np.float32)
    with pytest.raises(CheckpointError, match="export_dtype: fp32"):
        convert("w", largest, "F32", "BF16")
    infinite = np.array([np.inf], dtype=np.float32)
    assert convert("w", infinite, "F32", "F16")[0] == np.inf


def test_bf16_to_fp16_goes_through_fp32() -> None:
    raw = convert("w", np.array([0.5, -3.0], dtype=np.float32), "F32", "BF16")
    assert convert("w", raw, "BF16", "F16").tolist() == [0.5, -3.0]
    assert not is_exact("BF16", "F16")


def test_same_format_is_the_same_array() -> None:
    array = np.ones(3, dtype=np.int8)
    assert convert("w", array, "I8", "I8") is array
    with pytest.raises(CheckpointError, match="cannot convert I8"):
        convert("w", array, "I8", "BF16")
