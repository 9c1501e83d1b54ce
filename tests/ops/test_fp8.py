"""Bytes of FP8: numbers are themselves, ties go to even, too much saturates; Paddle's cast agrees."""

import numpy as np
import paddle
import pytest

from erniekit.ops.fp8 import E4M3, E5M2

FORMATS = {"e4m3": E4M3, "e5m2": E5M2}


@pytest.mark.parametrize("name", FORMATS)
def test_every_number_is_itself_and_midpoints_go_to_even(name):
    number = FORMATS[name]
    codes = np.arange(number.last + 1, dtype=np.uint8)
    values = number.values(codes)
    assert np.all(np.diff(values) > 0) and values[0] == 0
    np.testing.assert_array_equal(number.codes(values), codes)
    np.testing.assert_array_equal(number.codes(-values), codes | 0x80)
    middles = ((values[1:].astype(np.float64) + values[:-1]) / 2).astype(np.float32)
    np.testing.assert_array_equal(number.codes(middles), codes[:-1] + (codes[:-1] & 1))
    above = np.nextafter(middles, np.float32(np.inf))
    np.testing.assert_array_equal(number.codes(above), codes[1:])


def test_by_hand():
    given = np.array([448, 460, 1000, np.inf, -np.inf, 2.0**-9, 2.0**-10, 0.001, 1.0, -1.125, 17, np.nan])
    codes = [0x7E, 0x7E, 0x7E, 0x7E, 0xFE, 0x01, 0x00, 0x01, 0x38, 0xB9, 0x58, 0x7F]
    np.testing.assert_array_equal(E4M3.codes(given.astype(np.float32)), codes)
    assert E4M3.largest == 448 and E5M2.largest == 57344
    assert E5M2.codes(np.array([70000.0], np.float32))[0] == 0x7B
    np.testing.assert_array_equal(E4M3.values(np.array([0x38, 0x08, 0x07], np.uint8)), [1, 2**-6, 7 * 2**-9])


@pytest.mark.parametrize(("name", "dtype"), [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_paddle_casts_alike(name, dtype):
    drawn = np.random.default_rng(0).normal(size=20000) * 10.0 ** np.random.default_rng(1).uniform(
        -6, 3, 20000
    )
    given = drawn.astype(np.float32)
    given = given[np.abs(given) <= FORMATS[name].largest]
    theirs = paddle.to_tensor(given).astype(dtype).astype("float32").numpy()
    np.testing.assert_array_equal(FORMATS[name].values(FORMATS[name].codes(given)), theirs)
