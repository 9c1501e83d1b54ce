"""The native product with an adapter against numpy: values, gradients, what it keeps, at every level."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients, remake
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import lora
from tests.ops.test_lora import PIECES, RANK, factors, merged, normal

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
SCALE = 1.5


def tensor(array, dtype):
    return paddle.to_tensor(array).astype(dtype)


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


def near(found, expected, tolerance):
    assert found.shape == list(expected.shape)
    if expected.size:
        limit = tolerance * max(np.abs(expected).max(), 1e-30)
        np.testing.assert_allclose(exact(found), expected, rtol=0, atol=limit)


def parameter(array, dtype, *, trained=True):
    made = paddle.create_parameter(
        array.shape, dtype=dtype, default_initializer=paddle.nn.initializer.Constant(0.0)
    )
    made.set_value(tensor(array, dtype))
    made.stop_gradient = not trained
    return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (5, 7, 3), (50, 100, 8), (97, 33, 17), (0, 4, 2), (3, 0, 2), (3, 4, 0)]
)
def test_a_small_product_is_added_in_place(library, shape, transposed, dtype):
    m, n, r = shape
    y, h = tensor(normal(m, n + 2), dtype), tensor(normal(m, r + 3, seed=1), dtype)
    b = tensor(normal(*((n, r) if transposed else (r, n)), seed=2), dtype)
    before = exact(y)
    expected = before[:, 1 : n + 1] + exact(h)[:, 2 : 2 + r] @ (exact(b).T if transposed else exact(b))
    lora.add_low_rank(y[:, 1 : n + 1], h[:, 2 : 2 + r], b, transposed=transposed)
    near(y[:, 1 : n + 1], expected, 1e-5 if dtype == "float32" else 2**-8)
    np.testing.assert_array_equal(exact(y)[:, [0, -1]], before[:, [0, -1]])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 1, 7), (0, 7)])
@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients(library, pieces, shape, with_bias, dtype, tolerance):
    x = tensor(normal(*shape), dtype)
    x.stop_gradient = False
    weight = parameter(normal(7, 12, seed=1), dtype, trained=False)
    bias = parameter(normal(12, seed=4), dtype, trained=False) if with_bias else None
    a, b = (parameter(array, dtype) for array in factors(pieces))
    grad = tensor(normal(*shape[:-1], 12, seed=5), dtype)
    whole = merged(exact(weight), exact(a), exact(b), pieces, SCALE)
    rows, grads = exact(x).reshape(-1, 7), exact(grad).reshape(-1, 12)
    to_a, to_b, first = np.zeros(a.shape), np.zeros(b.shape), 0
    for index, (start, stop) in enumerate(pieces):
        ranks, columns = slice(index * RANK, (index + 1) * RANK), slice(first, first + stop - start)
        first = columns.stop
        to_b[:, columns] = SCALE * (rows @ exact(a)[:, ranks]).T @ grads[:, start:stop]
        to_a[:, ranks] = SCALE * rows.T @ (grads[:, start:stop] @ exact(b)[:, columns].T)
    for rounds in (1, 2):
        x.grad = None
        y = lora.lora_linear_native(x, weight, bias, a, b, pieces=pieces, scale=SCALE)
        assert y.dtype == x.dtype
        near(y, exact(x) @ whole + (exact(bias) if with_bias else 0), tolerance)
        y.backward(grad)
        near(x.grad, exact(grad) @ whole.T, tolerance)
        near(gradients.of(a), rounds * to_a, tolerance)
        near(gradients.of(b), rounds * to_b, tolerance)
        assert gradients.of(weight) is None
        assert a.grad is None and a.main_grad.dtype == paddle.float32
    with paddle.no_grad():
        near(
            lora.lora_linear_native(x, weight, bias, a, b, pieces=pieces, scale=SCALE),
            exact(y),
            1e-7,
        )


def test_input_without_gradient(library):
    pieces = PIECES[0]
    weight = parameter(normal(7, 12, seed=1), "float32", trained=False)
    a, b = (parameter(array, "float32") for array in factors(pieces))
    lora.lora_linear_native(
        paddle.to_tensor(normal(4, 7)), weight, None, a, b, pieces=pieces, scale=SCALE
    ).sum().backward()
    assert gradients.of(a) is not None and gradients.of(b) is not None


def test_a_weight_that_is_trained_gets_its_gradient(library):
    pieces = PIECES[0]
    weight = parameter(normal(7, 12, seed=1), "float32")
    a, b = (parameter(array, "float32") for array in factors(pieces))
    x = paddle.to_tensor(normal(4, 7))
    lora.lora_linear_native(x, weight, None, a, b, pieces=pieces, scale=SCALE).sum().backward()
    near(gradients.of(weight), np.tile(exact(x).sum(0)[:, None], (1, 12)), 1e-5)


def test_marked_input_is_made_again(library):
    """The input itself is not kept when it says how it is made."""
    pieces = PIECES[1]
    source = paddle.to_tensor(normal(4, 7))
    calls = []

    def double(tensor):
        calls.append(1)
        return tensor * 2.0

    x = remake.mark(source * 2.0, double, source)
    weight = parameter(normal(7, 12, seed=1), "float32", trained=False)
    a, b = (parameter(array, "float32") for array in factors(pieces))
    y = lora.lora_linear_native(x, weight, None, a, b, pieces=pieces, scale=SCALE)
    assert not calls
    y.sum().backward()
    assert calls == [1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_change_no_bit(library, dtype):
    found = []
    for threads in (1, 3):
        library.set_threads(threads)
        y = tensor(normal(211, 130), dtype)
        lora.add_low_rank(y, tensor(normal(211, 9, seed=1), dtype), tensor(normal(9, 130, seed=2), dtype))
        found.append(exact(y))
    np.testing.assert_array_equal(*found)
