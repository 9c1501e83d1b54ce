"""Native matrix product and linear operator against numpy, at every level of instructions that runs here."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients, remake
from erniekit.ops.kernels.library import find_library, load
from erniekit.ops.native import linear as native
from erniekit.ops.native import matmul

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
BEST = load()
# M, N, K: single numbers, odd everything, more than one block of K, panels that are not full, no sum at all.
SHAPES = [
    *((1, 1, 1), (3, 5, 7), (8, 48, 64), (17, 100, 33), (130, 49, 2050), (64, 3, 1), (300, 20, 4100)),
    *((5, 7, 0), (0, 4, 3), (2, 0, 3), (9, 1, 8)),
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def tensor(array, dtype):
    return paddle.to_tensor(array).astype(dtype)


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_products(library, shape, transposed, dtype):
    (m, n, k), (transpose_a, transpose_b) = shape, transposed
    a = tensor(normal(*((k, m) if transpose_a else (m, k))), dtype)
    b = tensor(normal(*((n, k) if transpose_b else (k, n)), seed=1), dtype)
    bias = tensor(normal(n, seed=2), dtype)
    expected = (exact(a).T if transpose_a else exact(a)) @ (exact(b).T if transpose_b else exact(b))
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    out = paddle.full([m, n], 7.0)
    matmul.matmul_into(out, a, b, **options)
    near(out, expected, 1e-5)
    matmul.matmul_into(out, a, b, **options, add=True)
    near(out, 2 * expected, 1e-5)
    rounded = paddle.full([m, n], 7.0, dtype="bfloat16")
    matmul.matmul_into(rounded, a, b, **options, bias_N=bias)
    near(rounded, expected + exact(bias), 2**-8)


def near(found, expected, tolerance):
    assert found.shape == list(expected.shape)
    if expected.size:
        limit = tolerance * max(np.abs(expected).max(), 1e-30)
        np.testing.assert_allclose(exact(found), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_change_no_bit(library, dtype):
    a, b = tensor(normal(211, 300), dtype), tensor(normal(300, 1000, seed=1), dtype)
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        out, by_rows = paddle.empty([211, 1000]), paddle.empty([300, 1000])
        matmul.matmul_into(out, a, b)
        matmul.matmul_into(by_rows, a, tensor(normal(211, 1000, seed=3), dtype), transpose_a=True)
        found.append((out.numpy(), by_rows.numpy()))
    for one, two in found[1:]:
        np.testing.assert_array_equal(one, found[0][0])
        np.testing.assert_array_equal(two, found[0][1])


def parameter(array, dtype):
    made = paddle.create_parameter(
        array.shape, dtype=dtype, default_initializer=paddle.nn.initializer.Constant(0.0)
    )
    made.set_value(tensor(array, dtype))
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 1e-2)])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7), (1, 1, 7), (0, 7)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear_and_gradients(library, shape, with_bias, dtype, tolerance):
    x = tensor(normal(*shape), dtype)
    x.stop_gradient = False
    weight = parameter(normal(7, 6, seed=1), dtype)
    bias = parameter(normal(6, seed=2), dtype) if with_bias else None
    grad = tensor(normal(*shape[:-1], 6, seed=3), dtype)
    for rounds in (1, 2):
        x.grad = None
        y = native.linear_native(x, weight, bias)
        assert y.dtype == x.dtype
        near(y, exact(x) @ exact(weight) + (exact(bias) if with_bias else 0), tolerance)
        y.backward(grad)
        near(x.grad, exact(grad) @ exact(weight).T, tolerance)
        rows, grads = exact(x).reshape(-1, 7), exact(grad).reshape(-1, 6)
        # fp32 sums of exact products, over two backward passes, whatever the storage type.
        near(gradients.of(weight), rounds * rows.T @ grads, 1e-5)
        if with_bias:
            near(gradients.of(bias), rounds * grads.sum(0), 1e-5)
        assert weight.grad is None and weight.main_grad.dtype == paddle.float32


def test_frozen_and_computed_weights(library):
    x = tensor(normal(4, 7), "float32")
    x.stop_gradient = False
    frozen = tensor(normal(7, 6), "float32")
    native.linear_native(x, frozen).sum().backward()
    assert frozen.grad is None and getattr(frozen, "main_grad", None) is None
    near(x.grad, np.ones((4, 6)) @ exact(frozen).T, 1e-5)
    trained, still = parameter(normal(7, 6), "float32"), tensor(normal(4, 7), "float32")
    native.linear_native(still, trained * 2.0).sum().backward()
    near(trained.grad, 2 * exact(still).T @ np.ones((4, 6)), 1e-5)
    assert still.grad is None


def test_an_input_that_can_be_made_again_is_not_kept(library):
    made = []

    def double(source):
        made.append(True)
        return source * 2.0

    source = tensor(normal(4, 7), "float32")
    x = remake.mark(double(source), double, source)
    weight = parameter(normal(7, 6), "float32")
    y = native.linear_native(x, weight)
    x.fill_(0.0)  # were it kept, its gradient would be zero now
    y.sum().backward()
    assert len(made) == 2
    near(gradients.of(weight), 2 * exact(source).T @ np.ones((4, 6)), 1e-5)


def test_inputs_that_do_not_lie_row_by_row(library):
    x, weight = tensor(normal(7, 4), "bfloat16").T, tensor(normal(6, 7, seed=1), "bfloat16").T
    near(native.linear_native(x, weight), exact(x) @ exact(weight), 1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sums_of_rows(library, dtype):
    for m, n in ((1, 1), (3, 70), (0, 5), (200, 17)):
        x, out = tensor(normal(m, n), dtype), paddle.full([n], 3.0)
        native.add_rows(out, x, 0.0)
        near(out, exact(x).sum(0), 1e-5)
        native.add_rows(out, x, 1.0)
        near(out, 2 * exact(x).sum(0), 1e-5)


@pytest.fixture
def with_onednn():
    """bf16 products by the oneDNN of Paddle's wheel, as on processors with matrix tiles."""
    path = matmul.library.onednn_path()
    if BEST.level != "avx512bf16" or path is None:
        pytest.skip("oneDNN multiplies bf16 only beside our own bf16 kernels")
    assert BEST.use_onednn(path)
    yield
    assert BEST.use_onednn(None) is False


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("shape", SHAPES)
def test_products_by_onednn(with_onednn, monkeypatch, shape, transposed):
    monkeypatch.setattr(matmul.library, "load", lambda: BEST)
    test_products(BEST, shape, transposed, "bfloat16")


def test_another_library_in_its_place_is_not_used(tmp_path):
    """A file that is no library, and a library that is no oneDNN: our own kernels go on."""
    (tmp_path / "libdnnl.so.3").write_text("nothing")
    assert BEST.use_onednn(tmp_path / "libdnnl.so.3") is False
    assert BEST.use_onednn(BEST.folder / "kernels.so") is False
    assert BEST.use_onednn(tmp_path / "missing.so") is False
