"""Products of rounded factors: values and gradients by hand, with roundings that can be told apart."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients, remake
from erniekit.ops.backend import use_kernels
from erniekit.ops.low_precision import low_precision_grouped_linear, low_precision_linear


class Marked:
    """Every factor times a number of its own; bounds are written down."""

    def __init__(self):
        self.bounds = []

    def weight(self, weight_KN, bounds):
        self.bounds.append(None if bounds is None else bounds.tolist())
        return weight_KN * 2.0

    def input(self, x_MK, kept, bounds):
        return x_MK * 3.0, kept

    def input_again(self, kept, bounds):
        return remake.restore(kept) * 5.0

    def gradient(self, grad_MN, bounds):
        return grad_MN * 7.0

    def gradient_again(self, grad_MN, bounds):
        self.bounds.append(None if bounds is None else bounds.tolist())
        return grad_MN * 11.0

    def input_gradient(self, grad_MK):
        return grad_MK * 13.0


def drawn(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def parameter(values):
    made = paddle.create_parameter(list(values.shape), "float32")
    made.set_value(values)
    return made


@pytest.fixture(params=["auto", "paddle"])
def kernels(request):
    use_kernels(request.param)
    yield
    use_kernels("auto")


def test_each_product_takes_its_own_roundings(kernels):
    x, w, b, g = drawn(2, 3, 4), drawn(4, 5), drawn(5), drawn(2, 3, 5)
    arithmetic = Marked()
    inputs, weight, bias = paddle.to_tensor(x), parameter(w), parameter(b)
    inputs.stop_gradient = False
    y = low_precision_linear(inputs, weight, bias, arithmetic)
    np.testing.assert_allclose(y.numpy(), 6 * x @ w + b, rtol=1e-5)
    for count in (1, 2):
        y.backward(paddle.to_tensor(g))
        np.testing.assert_allclose(
            gradients.of(weight).numpy(), count * 55 * x.reshape(-1, 4).T @ g.reshape(-1, 5), rtol=1e-4
        )
        np.testing.assert_allclose(gradients.of(bias).numpy(), count * g.sum((0, 1)), rtol=1e-5)
        np.testing.assert_allclose(inputs.grad.numpy(), count * 182 * g @ w.T, rtol=1e-5)
        y = low_precision_linear(inputs, weight, bias, arithmetic)
    assert set(arithmetic.bounds) == {None}


def test_experts(kernels):
    x, w, g = drawn(5, 4), drawn(3, 4, 2), drawn(5, 2)
    arithmetic = Marked()
    inputs, weight = paddle.to_tensor(x), parameter(w)
    inputs.stop_gradient = False
    offsets = paddle.to_tensor(np.array([0, 2, 2, 5]))
    y = low_precision_grouped_linear(inputs, weight, offsets, arithmetic)
    np.testing.assert_allclose(y.numpy(), 6 * np.concatenate([x[:2] @ w[0], x[2:] @ w[2]]), rtol=1e-5)
    y.backward(paddle.to_tensor(g))
    expected = 55 * np.stack([x[:2].T @ g[:2], np.zeros((4, 2)), x[2:].T @ g[2:]])
    np.testing.assert_allclose(gradients.of(weight).numpy(), expected, rtol=1e-4, atol=1e-5)
    back = 182 * np.concatenate([g[:2] @ w[0].T, g[2:] @ w[2].T])
    np.testing.assert_allclose(inputs.grad.numpy(), back, rtol=1e-5)
    # Blocks of weights do not reach over experts, tiles of tokens neither.
    assert arithmetic.bounds == [[0, 4, 8, 12], [0, 2, 2, 5], [0, 4, 8, 12]]


def test_frozen_weights_get_no_gradient(kernels):
    weight, inputs = parameter(drawn(4, 5)), paddle.to_tensor(drawn(3, 4))
    weight.stop_gradient, inputs.stop_gradient = True, False
    low_precision_linear(inputs, weight, None, Marked()).sum().backward()
    assert gradients.of(weight) is None and inputs.grad is not None
