"""Native products of experts against numpy, group by group."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import grouped_linear as native

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
# Rows of each expert: none at all, an idle expert, one row, more experts than threads share out singly.
LOADS = [(0, 0), (3,), (5, 0, 1), (0, 40, 7, 0), tuple((7 * i) % 5 for i in range(20))]


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


def near(found, expected, tolerance):
    assert found.shape == list(expected.shape)
    if expected.size:
        limit = tolerance * max(np.abs(expected).max(), 1e-30)
        np.testing.assert_allclose(exact(found), expected, rtol=0, atol=limit)


def by_group(function, loads, *arrays):
    """`function(group, rows of each array)` for every group."""
    bounds = np.cumsum([0, *loads])
    return [function(g, *(a[bounds[g] : bounds[g + 1]] for a in arrays)) for g in range(len(loads))]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("sizes", [(6, 5), (7, 300), (64, 49), (34, 80)])
@pytest.mark.parametrize("loads", LOADS)
def test_products_and_gradients(library, loads, sizes, dtype, tolerance):
    inner, outer = sizes
    rng = np.random.default_rng(0)

    def draw(*shape):
        return paddle.to_tensor(rng.normal(size=shape).astype(np.float32)).astype(dtype)

    x, grad, stacked = draw(sum(loads), inner), draw(sum(loads), outer), draw(len(loads), inner, outer)
    x.stop_gradient = False
    weight = paddle.create_parameter(
        stacked.shape, dtype=dtype, default_initializer=paddle.nn.initializer.Constant(0.0)
    )
    weight.set_value(stacked)
    offsets = paddle.to_tensor(np.cumsum([0, *loads]))
    w = exact(weight)
    for rounds in (1, 2):
        x.grad = None
        y = native.grouped_linear_native(x, weight, offsets)
        near(y, np.concatenate(by_group(lambda g, rows: rows @ w[g], loads, exact(x))), tolerance)
        if not sum(loads):
            return
        y.backward(grad)
        near(x.grad, np.concatenate(by_group(lambda g, rows: rows @ w[g].T, loads, exact(grad))), tolerance)
        expected = np.stack(by_group(lambda g, a, b: a.T @ b, loads, exact(x), exact(grad)))
        near(gradients.of(weight), rounds * expected, 1e-5)


def test_threads_change_no_bit(library):
    rng = np.random.default_rng(1)
    x, weight = (paddle.to_tensor(rng.normal(size=s).astype(np.float32)) for s in ((90, 33), (3, 33, 500)))
    offsets = paddle.to_tensor([0, 50, 50, 90])
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        found.append(native.grouped_linear_native(x, weight, offsets).numpy())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])
