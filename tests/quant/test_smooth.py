"""Factors of SmoothQuant and AWQ, and scales of inputs."""

import numpy as np
import pytest

from erniekit.quant.rtn import output_error, round_to_nearest
from erniekit.quant.smooth import awq_factors, input_scale, smooth_factors, turned
from tests.quant.test_rtn import drawn, seen


def test_smoothquant_by_hand():
    """max|x| = (16, 1), max|w| = (1, 1): with a half, f = (4, 1), and with a geometric mean of 1 (2, 1/2)."""
    weight = np.array([[1.0, -0.5], [0.2, 1.0]], np.float32)
    np.testing.assert_allclose(smooth_factors(np.array([16.0, 1.0]), [weight], 0.5), [2.0, 0.5], rtol=1e-6)
    larger = np.array([[4.0], [0.0]], np.float32)
    np.testing.assert_allclose(
        smooth_factors(np.array([16.0, 1.0]), [weight, larger], 0.5), np.array([2.0, 1.0]) / 2**0.5, rtol=1e-6
    )
    np.testing.assert_array_equal(smooth_factors(np.array([0.0, 1.0]), [weight], 0.5)[0], 1.0)


def test_outliers_of_inputs_become_smaller():
    rows = drawn(300, 64)
    rows[:, 7] *= 60
    weight = drawn(64, 32) * 0.1
    factors = smooth_factors(np.abs(rows).max(0), [weight], 0.5)
    scaled = seen(rows).scaled(factors)

    def error(given, matrix):
        scale = input_scale(given, matrix, "int8", clip=False)
        rounded = np.clip(np.rint(given.sample / scale), -127, 127) * scale
        return np.square(rounded @ matrix - given.sample @ matrix).sum()

    assert error(scaled, weight * factors[:, None]) < 0.2 * error(seen(rows), weight)


def test_awq_lowers_the_error_of_products():
    rows = drawn(400, 64) * np.exp(1.5 * drawn(64, seed=4))
    inputs, weight = seen(rows), drawn(64, 48)
    factors = awq_factors(inputs, [weight], ["int4"], rotations=[0], clip=False)
    plain = output_error(weight, round_to_nearest(weight, "int4", clip=False), inputs.moment)
    whole = weight * factors[:, None]
    found = output_error(whole, round_to_nearest(whole, "int4", clip=False), inputs.scaled(factors).moment)
    assert found < 0.7 * plain
    assert np.corrcoef(np.log(factors), np.log(np.abs(rows).mean(0)))[0, 1] > 0.99


def test_awq_leaves_what_it_cannot_help():
    rows = np.ones((10, 8), np.float32)
    np.testing.assert_array_equal(
        awq_factors(seen(rows), [drawn(8, 4)], ["int8"], rotations=[0], clip=False), np.ones(8)
    )


@pytest.mark.parametrize(("number", "largest"), [("int8", 127), ("e4m3", 448)])
def test_scales_of_inputs(number, largest):
    rows = drawn(200, 32)
    weight = drawn(32, 8)
    scale = input_scale(seen(rows), weight, number, clip=False)
    assert scale == np.float32(np.abs(rows).max() / largest)
    rows[0, 0] = 400.0
    weight[0] = 0.0
    cut = input_scale(seen(rows), weight, number, clip=True)
    assert cut < 0.5 * 400 / largest if number == "int8" else cut == np.float32(400 / largest)


def test_turned_factors_have_the_same_products():
    rows, weight = drawn(20, 64), drawn(64, 8)
    other, inputs = turned(weight, seen(rows), 32)
    np.testing.assert_allclose(inputs.sample @ other, rows @ weight, atol=1e-4)
    assert turned(weight, seen(rows), 0)[0] is weight
