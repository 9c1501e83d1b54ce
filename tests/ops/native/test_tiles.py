"""Native rounding by tiles: the bits of Paddle's operators, at every level of instructions."""

from functools import cache

import numpy as np
import paddle
import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.ops.native.tiles import decode_native, encode_native, rounded_native, scales_of_native
from erniekit.ops.tiles import (
    LARGEST,
    Counts,
    Grid,
    encode_reference,
    rounded_reference,
    scales_of_reference,
)

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
TILES = [(1, 128), (128, 128), (128, 1), (None, 1), (1, None), (None, None), (3, 5), (64, 250)]


def drawn(rows, columns, dtype="float32"):
    random = np.random.default_rng(rows + columns)
    # Sizes over many octaves, and zeros.
    values = random.normal(size=(rows, columns)) * 2.0 ** random.integers(-30, 12, (rows, columns))
    values[random.random((rows, columns)) < 0.05] = 0
    return paddle.to_tensor(values.astype(np.float32)).astype(dtype)


def same(found, expected):
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found.numpy(), expected.numpy())


SHAPES = ((5, 7, None), (140, 290, None), (270, 40, (0, 3, 3, 200, 270)))


@cache
def expected_of(grid, dtype, rows, columns, bounds):
    """By Paddle's operators, once for all levels."""
    x, counts = drawn(rows, columns, dtype), Counts()
    bounds = None if bounds is None else np.array(bounds)
    made = encode_reference(x, grid, bounds=bounds, counts=counts)
    numbers, scales = (f(x, grid, bounds=bounds) for f in (rounded_reference, scales_of_reference))
    return made, counts.take(), numbers, scales


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("format", LARGEST)
def test_numbers_bytes_and_scales(library, format, tile, power_of_two, dtype):
    grid = Grid(format, *tile, power_of_two=power_of_two)
    for rows, columns, groups in SHAPES:
        expected, expected_counts, expected_numbers, expected_scales = expected_of(
            grid, dtype, rows, columns, groups
        )
        x, counts = drawn(rows, columns, dtype), Counts()
        bounds = None if groups is None else np.array(groups)
        found = encode_native(x, grid, bounds=bounds, counts=counts)
        same(found.scales, expected.scales)
        same(found.codes, expected.codes)
        assert counts.take() == expected_counts
        numbers = rounded_native(x, grid, bounds=bounds)
        same(numbers, expected_numbers)
        same(decode_native(found), numbers)
        same(scales_of_native(x, grid, bounds=bounds), expected_scales)


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_every_byte_and_every_middle(library, format):
    """All numbers of a format, what lies in the middle of two, and a little beside."""
    codes = paddle.arange(0, 127 if format == "e4m3" else 124).astype("uint8")
    values = np.sort(codes.view({"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}[format]).astype("float32"))
    middles = (values[1:] + values[:-1]) / 2
    both = np.concatenate([values, middles, np.nextafter(middles, 0), np.nextafter(middles, np.float32(1e9))])
    x = paddle.to_tensor(np.concatenate([both, -both])[None].astype(np.float32))
    one = paddle.ones([1, 1])
    grid = Grid(format, 1, None)
    same(rounded_native(x, grid, scales=one), rounded_reference(x, grid, scales=one))


@pytest.mark.parametrize("format", LARGEST)
def test_what_is_no_number_stays_none(library, format):
    for bad in (np.nan, np.inf, -np.inf):
        for power_of_two in (False, True):
            x = drawn(2, 40)
            x[0, 3] = bad
            found = rounded_native(x, Grid(format, 1, None, power_of_two=power_of_two)).numpy()
            assert np.isnan(found[0]).any() and np.isfinite(found[1]).all()


@pytest.mark.parametrize("format", LARGEST)
def test_given_scales(library, format):
    x, scales = drawn(9, 200), paddle.to_tensor(np.full((9, 2), 0.01, np.float32))
    counts, expected = Counts(), Counts()
    grid = Grid(format, 1, 128)
    same(
        rounded_native(x, grid, scales=scales, counts=counts),
        rounded_reference(x, grid, scales=scales, counts=expected),
    )
    assert counts.take() == expected.take()


def test_threads_change_no_bit(library):
    x = drawn(700, 600, "bfloat16")
    for grid in (Grid("e4m3", 1, 128), Grid("e4m3", 128, 128), Grid("int8", 128, 1)):
        found = []
        for threads in (1, 2, 3):
            library.set_threads(threads)
            found.append(rounded_native(x, grid))
        same(found[0], found[1])
        same(found[0], found[2])
