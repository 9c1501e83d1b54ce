"""Native products at every level of instructions against Paddle's operators."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native.products import product_native, weight_gradient_native
from erniekit.ops.products import product_reference, weight_gradient_reference

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)


def drawn(*shape, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


@pytest.mark.parametrize("offsets", [None, [0, 30, 30, 131]])
@pytest.mark.parametrize("turned", [False, True])
def test_products(library, offsets, turned):
    bounds = None if offsets is None else paddle.to_tensor(np.array(offsets))
    weight = drawn(70, 50) if offsets is None else drawn(3, 70, 50)
    x, g = drawn(131, 50 if turned else 70, seed=1), drawn(131, 50, seed=2)
    found = product_native(x, weight, offsets=bounds, turned=turned)
    expected = product_reference(x, weight, offsets=bounds, turned=turned)
    np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-4, atol=1e-4)
    if turned:
        return
    pair = [paddle.create_parameter(weight.shape, "float32") for _ in range(2)]
    weight_gradient_native(pair[0], x, g, offsets=bounds)
    weight_gradient_reference(pair[1], x, g, offsets=bounds)
    first, second = (gradients.of(each).numpy() for each in pair)
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-4)


def test_mixed_types_go_to_the_reference():
    x, weight = drawn(3, 4), drawn(4, 5).astype("bfloat16")
    np.testing.assert_array_equal(product_native(x, weight).numpy(), product_reference(x, weight).numpy())
