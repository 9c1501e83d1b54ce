"""The product with a low-rank adapter against the merged weight, piece by piece and in numpy."""

import numpy as np
import paddle
import pytest

from erniekit.ops import lora
from erniekit.ops.moe import grouped_linear

# Columns of a weight of 12: two pieces with a gap before, between and after them; all; the last alone.
PIECES = [((1, 4), (5, 10)), ((0, 12),), ((0, 5), (5, 12)), ((8, 12),)]
RANK = 3


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def factors(pieces, inner=7, experts=()):
    width = sum(stop - start for start, stop in pieces)
    return normal(*experts, inner, RANK * len(pieces), seed=2), normal(*experts, RANK, width, seed=3)


def merged(weight, a, b, pieces, scale):
    """By the definition: one product for each piece."""
    out, first = weight.astype(np.float64).copy(), 0
    for index, (start, stop) in enumerate(pieces):
        width = stop - start
        pair = a[..., index * RANK : (index + 1) * RANK] @ b[..., first : first + width]
        out[..., start:stop] += scale * pair
        first += width
    return out


@pytest.mark.parametrize("pieces", PIECES)
def test_reference_is_the_merged_weight(pieces):
    x, weight, bias = normal(2, 5, 7), normal(7, 12, seed=1), normal(12, seed=4)
    a, b = factors(pieces)
    tensors = [paddle.to_tensor(array) for array in (x, weight, bias, a, b)]
    found = lora.lora_linear_reference(*tensors, pieces=pieces, scale=1.5)
    expected = x @ merged(weight, a, b, pieces, 1.5) + bias
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("pieces", PIECES)
def test_merged_weight(pieces):
    weight = normal(7, 12, seed=1)
    a, b = factors(pieces)
    found = lora.merged_weight(*map(paddle.to_tensor, (weight, a, b)), pieces=pieces, scale=0.5)
    np.testing.assert_allclose(found.numpy(), merged(weight, a, b, pieces, 0.5), rtol=0, atol=1e-5)
    narrow = lora.merged_weight(
        paddle.to_tensor(weight).astype("bfloat16"),
        *map(paddle.to_tensor, (a, b)),
        pieces=pieces,
        scale=0.5,
    )
    assert narrow.dtype == paddle.bfloat16


@pytest.mark.parametrize("pieces", PIECES)
def test_experts_see_their_own_rows(pieces):
    x, weight = normal(9, 7), normal(4, 7, 12, seed=1)
    a, b = factors(pieces, experts=(4,))
    offsets = paddle.to_tensor(np.array([0, 2, 2, 6, 9], np.int64))
    whole = merged(weight, a, b, pieces, 2.0).astype(np.float32)
    expected = grouped_linear(paddle.to_tensor(x), paddle.to_tensor(whole), offsets).numpy()
    leaves = [paddle.to_tensor(array, stop_gradient=False) for array in (a, b)]
    found = lora.lora_grouped_linear(
        paddle.to_tensor(x), paddle.to_tensor(weight), offsets, *leaves, pieces=pieces, scale=2.0
    )
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-4)
    other = lora.lora_grouped_linear(
        paddle.to_tensor(x),
        paddle.to_tensor(weight),
        offsets,
        *leaves,
        pieces=pieces,
        scale=2.0,
        x_dropped=paddle.zeros_like(paddle.to_tensor(x)),
    )
    np.testing.assert_allclose(
        other.numpy(),
        grouped_linear(paddle.to_tensor(x), paddle.to_tensor(weight), offsets).numpy(),
        atol=1e-5,
    )
