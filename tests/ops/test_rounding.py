"""Rounded activations: numbers by hand, and by numpy."""

import numpy as np
import paddle
import pytest

from erniekit.ops import hadamard
from erniekit.ops.fp8 import E4M3
from erniekit.ops.quantised import QuantisedMatrix, quantised_linear, quantised_product
from erniekit.ops.rounding import Rounding, rotate


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_int8_by_hand():
    """Of a scale 0.5: 0.74 -> 1.48 -> 1, 0.75 -> 1.5 -> 2 (ties to even), 1.25 -> 2.5 -> 2; 100 -> 127."""
    rounding = Rounding("int8", paddle.to_tensor([0.5]))
    found = rounding.apply(paddle.to_tensor([[0.74, 0.75, 1.25, 100.0, -100.0]])).numpy()
    np.testing.assert_array_equal(found, [[0.5, 1.0, 1.0, 63.5, -63.5]])


def test_fp8_is_that_of_the_bytes():
    x = drawn(50, 64) * 200
    found = Rounding("e4m3", paddle.to_tensor([0.7])).apply(paddle.to_tensor(x)).numpy()
    scaled = np.clip(x / np.float32(0.7), -448, 448)
    np.testing.assert_array_equal(found, E4M3.values(E4M3.codes(scaled)) * np.float32(0.7))


def test_a_tile_of_a_row_has_a_scale_of_its_own():
    x = drawn(3, 200) * np.repeat([1.0, 1000.0], 100).astype(np.float32)
    x[1] = 0
    found = Rounding("e4m3", tile=128).apply(paddle.to_tensor(x)).numpy()
    for row in range(3):
        for part in (slice(0, 128), slice(128, 200)):
            scale = np.abs(x[row, part]).max() / np.float32(448) or np.float32(1)
            expected = E4M3.values(E4M3.codes(x[row, part] / scale)) * scale
            np.testing.assert_allclose(found[row, part], expected, rtol=1e-6)


def test_each_expert_has_its_own_scale():
    x, scales = drawn(7, 5), [0.01, 0.02, 0.03]
    found = Rounding("int8", paddle.to_tensor(scales)).apply(
        paddle.to_tensor(x), paddle.to_tensor(np.array([0, 4, 4, 7]))
    )
    each = np.repeat(np.array(scales, np.float32), [4, 0, 3])[:, None]
    np.testing.assert_allclose(found.numpy(), np.clip(np.rint(x / each), -127, 127) * each, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rotated_factors_have_the_same_product(dtype):
    weight, x = drawn(64, 9), paddle.to_tensor(drawn(5, 64)).astype(dtype)
    turned = hadamard.rotate_rows(weight, 32)
    plain = QuantisedMatrix.of(turned, "int8", None, dtype)
    matrix = QuantisedMatrix.of(turned, "int8", None, dtype)
    matrix.rotation = 32
    tolerance = 2e-2 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(
        quantised_linear(x, matrix).astype("float32").numpy(),
        x.astype("float32").numpy() @ weight,
        atol=8 * tolerance,
    )
    one = quantised_product(rotate(x, 32), plain).astype("float32").numpy()
    np.testing.assert_array_equal(quantised_product(x, matrix).astype("float32").numpy(), one)


def test_the_gradient_passes_the_rounding_and_is_rotated_back():
    weight = drawn(32, 6)
    matrix = QuantisedMatrix.of(hadamard.rotate_rows(weight, 16), "int8", None, "float32")
    matrix.rotation, matrix.rounding = 16, Rounding("int8", paddle.to_tensor([0.03]))
    x = paddle.to_tensor(drawn(4, 32))
    x.stop_gradient = False
    y = quantised_linear(x, matrix)
    expected = Rounding("int8", paddle.to_tensor([0.03])).apply(rotate(x.detach(), 16)).numpy()
    np.testing.assert_allclose(y.numpy(), expected @ matrix.numbers().numpy(), atol=1e-4)
    y.sum().backward()
    whole = hadamard.rotate_rows(matrix.numbers().numpy(), 16)
    np.testing.assert_allclose(x.grad.numpy(), np.ones((4, 6)) @ whole.T, atol=1e-4)
