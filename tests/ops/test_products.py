"""Products without a graph: both backends against NumPy."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients
from erniekit.ops.native.products import product_native, weight_gradient_native
from erniekit.ops.products import product_reference, weight_gradient_reference
from tests.ops.test_tiles import tensor

OFFSETS = paddle.to_tensor(np.array([0, 2, 2, 5], np.int64))


def drawn(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("product", [product_reference, product_native])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products(product, dtype):
    tolerance = 1e-5 if dtype == "float32" else 5e-2
    x, w, bias, turned = drawn(5, 4), drawn(4, 3), drawn(3), drawn(5, 3)
    found = product(tensor(x, dtype), tensor(w, dtype), bias=tensor(bias, dtype))
    np.testing.assert_allclose(found.astype("float32").numpy(), x @ w + bias, atol=tolerance)
    found = product(tensor(turned, dtype), tensor(w, dtype), turned=True)
    np.testing.assert_allclose(found.astype("float32").numpy(), turned @ w.T, atol=tolerance)
    stacked = drawn(3, 4, 3)
    found = product(tensor(x, dtype), tensor(stacked, dtype), offsets=OFFSETS)
    expected = np.concatenate([x[:2] @ stacked[0], x[2:] @ stacked[2]])
    np.testing.assert_allclose(found.astype("float32").numpy(), expected, atol=tolerance)
    nothing = paddle.zeros([4], dtype="int64")
    assert product(tensor(x[:0], dtype), tensor(stacked, dtype), offsets=nothing).shape == [0, 3]


@pytest.mark.parametrize("weight_gradient", [weight_gradient_reference, weight_gradient_native])
def test_gradients_of_weights_add_up(weight_gradient):
    x, g = drawn(5, 4), 2 * drawn(5, 3)
    one = paddle.create_parameter([4, 3], "float32")
    stacked = paddle.create_parameter([3, 4, 3], "float32")
    for count in (1, 2):
        assert weight_gradient(one, tensor(x), tensor(g)) is None
        np.testing.assert_allclose(gradients.of(one).numpy(), count * x.T @ g, rtol=1e-4, atol=1e-5)
        assert weight_gradient(stacked, tensor(x), tensor(g), offsets=OFFSETS) is None
        expected = count * np.stack([x[:2].T @ g[:2], np.zeros((4, 3)), x[2:].T @ g[2:]])
        np.testing.assert_allclose(gradients.of(stacked).numpy(), expected, rtol=1e-4, atol=1e-5)
