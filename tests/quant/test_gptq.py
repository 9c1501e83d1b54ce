"""GPTQ against numbers by hand, an implementation of its own, and plain rounding."""

import numpy as np
import pytest

from erniekit.quant.gptq import gptq, inverse_factor
from erniekit.quant.rtn import Inputs, output_error, round_to_nearest
from erniekit.quant.schemes import FORMATS
from tests.quant.test_rtn import drawn, seen


def correlated(rows, features, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(rows, features // 3)) @ rng.normal(size=(features // 3, features))).astype(
        np.float32
    ) + 0.5 * rng.normal(size=(rows, features)).astype(np.float32)


def test_two_inputs_by_hand():
    """H = [[1, 1/2], [1/2, 1]]: what w_1 loses, w_2 makes up for by half.

    Scales are 1 (the largest is 7). w = (0.4, 6.6), (7, 7): 0.4 -> 0 loses 0.4, so 6.6 becomes 6.8 -> 7; then
    of (1.4, 3.35): 1.4 -> 1, 3.35 + 0.2 = 3.55 -> 4, where rounding alone gives 3.
    """
    moment = np.array([[1.0, 0.5], [0.5, 1.0]])
    inputs = Inputs(moment, np.ones(2, np.float32), 1, np.zeros((0, 2), np.float32))
    factor = inverse_factor(moment, 0.0)
    np.testing.assert_allclose(factor.T @ factor @ moment, np.eye(2), atol=1e-12)
    assert factor[0, 1] / factor[0, 0] == pytest.approx(-0.5)
    weight = np.array([[7.0, 1.4], [7.0, 3.35]], np.float32)
    # The second column's scale is 3.35 / 7 without help, so give it a third row that is 7 and independent.
    moment = np.array([[1.0, 0.5, 0], [0.5, 1.0, 0], [0, 0, 1.0]])
    weight = np.array([[0.4, 1.4], [6.6, 3.35], [7.0, 7.0]], np.float32)
    inputs = Inputs(moment, np.ones(3, np.float32), 1, np.zeros((0, 3), np.float32))
    found = gptq(weight, "int4", inputs, clip=False, damping=1e-9, act_order=False).numbers()
    np.testing.assert_allclose(found, [[0, 1], [7, 4], [7, 7]], atol=1e-6)
    np.testing.assert_allclose(round_to_nearest(weight, "int4", clip=False).numbers()[1], [7, 3], atol=1e-6)


def straightforward(weight, scales, moment, damping, order, least):
    """GPTQ as in the paper's first algorithm: the inverse is taken anew after each input, in fp64."""
    damped = moment + np.eye(len(moment)) * damping * np.trace(moment) / len(moment)
    wanted, found, left = weight.astype(np.float64).copy(), np.zeros(weight.shape), list(order)
    while left:
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        at = left[0]
        found[at] = np.clip(np.rint(wanted[at] / scales[at]), least, 7) * scales[at]
        error = (wanted[at] - found[at]) / inverse[0, 0]
        for place, other in enumerate(left[1:], start=1):
            wanted[other] -= inverse[0, place] * error
        left = left[1:]
    return found


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("format", "block_size"), [("int4", 128), ("int4", 7), ("int4_g64", 16), ("int4_g32", 16)]
)
def test_it_is_the_straightforward_one(format, block_size, act_order):
    rows = correlated(400, 96)
    rows[:, ::5] *= 4
    inputs, weight = seen(rows), drawn(96, 11)
    found = gptq(weight, format, inputs, damping=0.02, block_size=block_size, act_order=act_order)
    order = np.argsort(-np.diagonal(inputs.moment), kind="stable") if act_order else np.arange(96)
    scales = np.repeat(found.scales, FORMATS[format].group or 96, axis=0)[:96]
    least = -8 if format == "int4_g32" else -7
    expected = straightforward(weight, scales, inputs.moment, 0.02, order, least)
    # A number that lies on the edge between two may fall on either side in fp32.
    assert np.mean(np.abs(found.numbers() - expected) > 1e-4) < 0.01


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_products_change_less_than_by_rounding(format):
    inputs, weight = seen(correlated(600, 128)), drawn(128, 24)
    plain = output_error(
        weight, round_to_nearest(weight, format, importance=inputs.importance), inputs.moment
    )
    assert output_error(weight, gptq(weight, format, inputs), inputs.moment) < 0.75 * plain


def test_without_inputs_it_rounds():
    weight = drawn(64, 5)
    nothing = Inputs(np.zeros((64, 64)), np.zeros(64, np.float32), 0, np.zeros((0, 64), np.float32))
    found = gptq(weight, "int4", nothing)
    np.testing.assert_array_equal(found.codes, round_to_nearest(weight, "int4").codes)


def test_inputs_that_are_never_there_do_no_harm():
    rows = correlated(200, 64)
    rows[:, 10:20] = 0
    found = gptq(drawn(64, 5), "int4_g64", seen(rows))
    assert np.isfinite(found.numbers()).all()
