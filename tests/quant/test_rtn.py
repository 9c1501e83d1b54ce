"""Rounding to nearest with searched scales, and what is known of inputs."""

import numpy as np
import pytest

from erniekit.ops.hadamard import rotate_rows
from erniekit.ops.number_formats import absmax_scales
from erniekit.quant.rtn import Inputs, find_scales, group_errors, output_error, round_to_nearest
from erniekit.quant.schemes import FORMATS


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def seen(rows):
    return Inputs(rows.astype(np.float64).T @ rows, np.abs(rows).max(0), len(rows), rows)


def test_a_scale_by_hand():
    """Of 7 and forty of 1.4: a scale of 1 is exact for 7, and makes 1 of 1.4; a smaller one loses less."""
    weight = np.array([[7.0]] + [[1.4]] * 40, np.float32)
    whole = group_errors(weight, np.array([[1.0]], np.float32), "int4", None)
    np.testing.assert_allclose(whole, [[40 * 0.16]], rtol=1e-5)
    scale = find_scales(weight, "int4")[0, 0]
    assert scale < 1 and 2 * scale == pytest.approx(1.4, abs=0.15)
    assert group_errors(weight, np.array([[scale]]), "int4", None) < whole
    np.testing.assert_array_equal(find_scales(weight, "int4", clip=False), [[1.0]])


@pytest.mark.parametrize("format", ["int8", "int4", "int4_g64", "int4_g32", "int2_g128", "nf4"])
def test_clipping_never_loses(format):
    weight, importance = drawn(200, 9), np.exp(drawn(200, seed=1))
    row = FORMATS[format]
    plain = absmax_scales(weight, row.number, row.group, scale_type=row.scale_type)
    found = find_scales(weight, format, importance)
    assert np.all(np.abs(found) <= np.abs(plain) * (1 + 1e-6))
    errors = [group_errors(weight, scales, format, importance).sum() for scales in (found, plain)]
    assert errors[0] <= errors[1] * (1 + 1e-6)


def test_importance_says_whose_error_counts():
    weight = drawn(64, 40)
    importance = np.ones(64, np.float32)
    importance[:4] = 1000
    one = round_to_nearest(weight, "int4", importance=importance).numbers()
    other = round_to_nearest(weight, "int4").numbers()
    assert np.square(one - weight)[:4].sum() < np.square(other - weight)[:4].sum()


def test_the_error_of_products_is_that_of_the_products():
    rows, weight = drawn(300, 64, seed=2), drawn(64, 12)
    matrix = round_to_nearest(weight, "int4")
    gap = rows @ (matrix.numbers() - weight)
    expected = np.square(gap).sum() / np.square(rows @ weight).sum()
    assert output_error(weight, matrix, seen(rows).moment) == pytest.approx(expected, rel=1e-4)
    assert output_error(weight, matrix, None) == pytest.approx(
        np.square(matrix.numbers() - weight).sum() / np.square(weight).sum(), rel=1e-5
    )


def test_inputs_that_are_scaled_and_rotated():
    rows, factors = drawn(50, 64), np.exp(drawn(64, seed=3))
    for found, expected in (
        (seen(rows).scaled(factors), rows / factors),
        (seen(rows).rotated(16), rotate_rows(np.ascontiguousarray(rows.T), 16).T),
    ):
        np.testing.assert_allclose(
            found.moment, expected.T.astype(np.float64) @ expected, rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(found.largest, np.abs(expected).max(0), rtol=1e-5)
        np.testing.assert_allclose(found.sample, expected, rtol=1e-4, atol=1e-5)
    assert seen(rows).rotated(0).count == 50
    np.testing.assert_allclose(seen(rows).importance, np.square(rows).mean(0), rtol=1e-4)
