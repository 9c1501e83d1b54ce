"""Rounding by tiles with Paddle's operators, against values by hand and NumPy."""

import numpy as np
import paddle
import pytest

from erniekit.ops.tiles import (
    LARGEST,
    Counts,
    Grid,
    decode_reference,
    encode_reference,
    rounded_reference,
    scales_of_reference,
)


def tensor(values, dtype="float32"):
    return paddle.to_tensor(np.array(values, np.float32)).astype(dtype)


def test_values_by_hand():
    # max 896 = 2 * 448: halves are rounded to e4m3, with 8 numbers in an octave, and doubled again.
    x = tensor([[896.0, 100.0, -9.0, 0.009]])
    found = rounded_reference(x, Grid("e4m3", 1, None))
    np.testing.assert_array_equal(found.numpy(), [[896.0, 96.0, -9.0, 0.0078125]])
    # 50 lies between 48 and 52, in the middle: to the even mantissa, 48. 0.0045 = 2.3 units of 2^-9.
    np.testing.assert_array_equal(scales_of_reference(x, Grid("e4m3", 1, None)).numpy(), [[2.0]])
    # The least power of two that is not below 450 / 448 is 2, of 448 / 448 it is 1.
    power = Grid("e4m3", 1, 1, power_of_two=True)
    np.testing.assert_array_equal(
        scales_of_reference(tensor([[450.0, 448.0, 0.0, 3.5]]), power).numpy(), [[2.0, 1.0, 1.0, 2.0**-7]]
    )
    # A step of int4 is 14 / 7 = 2; 3 and 5 lie in the middle and go to 4 = 2 * 2 (even).
    whole = rounded_reference(tensor([[-14.0, 3.0, 5.0, 4.9]]), Grid("int4", None, None))
    np.testing.assert_array_equal(whole.numpy(), [[-14.0, 4.0, 4.0, 4.0]])


def test_tiles_do_not_reach_over_groups():
    x = tensor(np.arange(1, 11).reshape(5, 2))
    scales = scales_of_reference(x, Grid("int8", 2, 2), bounds=np.array([0, 3, 3, 5]))
    np.testing.assert_allclose(scales.numpy() * 127, [[4.0], [6.0], [10.0]], rtol=1e-6)
    assert scales_of_reference(x[:0], Grid("int8", 2, 2)).shape == [0, 1]


@pytest.mark.parametrize("format", LARGEST)
def test_given_scales_cut_and_are_counted(format):
    largest = LARGEST[format]
    counts = Counts()
    x = tensor([[largest * 2, -largest * 3, 1e-12, 0.0, 1.0]])
    found = rounded_reference(x, Grid(format, 1, None), scales=tensor([[1.0]]), counts=counts)
    np.testing.assert_array_equal(found.numpy(), [[largest, -largest, 0.0, 0.0, 1.0]])
    assert counts.take() == (5, 1, 2)
    assert counts.take() == (0, 0, 0)


@pytest.mark.parametrize("format", LARGEST)
def test_bytes_are_the_numbers(format):
    x = tensor(np.random.default_rng(0).normal(size=(7, 300)), "bfloat16")
    grid = Grid(format, 2, 128)
    codes = encode_reference(x, grid)
    assert codes.codes.dtype == paddle.uint8 and codes.scales.shape == [4, 3]
    found = decode_reference(codes)
    assert found.dtype == x.dtype
    np.testing.assert_array_equal(found.numpy(), rounded_reference(x, grid).numpy())
    step = codes.scales.numpy().max() * (32 if format == "e4m3" else 8192 if format == "e5m2" else 1)
    error = np.abs(found.astype("float32").numpy() - x.astype("float32").numpy()).max()
    assert 0 < error <= step / 2 + 4.0 / 512  # and half a step of bf16 at 4


def test_what_is_no_number_stays_none():
    for bad in (np.nan, np.inf):
        found = rounded_reference(tensor([[1.0, bad, 2.0]]), Grid("e4m3", 1, None, power_of_two=True))
        assert np.isnan(found.numpy()).any()
