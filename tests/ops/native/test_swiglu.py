"""SwiGLU of the native kernels against the reference and numpy, at every level that runs here."""

import numpy as np
import paddle
import pytest

from erniekit.ops import remake
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import swiglu as native
from erniekit.ops.swiglu import swiglu_reference

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)


def normal(*shape, seed=0, dtype="float32"):
    array = 3 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    made = paddle.to_tensor(array).astype(dtype)
    made.stop_gradient = False
    return made


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 8e-3)])
@pytest.mark.parametrize("shape", [(1, 2), (3, 5, 14), (1, 1, 128), (700, 66), (0, 8), (4, 0), (2, 40000)])
def test_values_and_gradients(library, shape, dtype, tolerance):
    x = normal(*shape, dtype=dtype)
    grad = normal(*shape[:-1], shape[-1] // 2, seed=1, dtype=dtype)
    y = native.swiglu_native(x)
    assert y.dtype == x.dtype
    y.backward(grad)
    wide, g = exact(x), exact(grad)
    gate, up = np.split(wide, 2, axis=-1)
    s = 1 / (1 + np.exp(-gate))
    expected = np.concatenate([g * up * s * (1 + gate * (1 - s)), g * gate * s], -1)
    np.testing.assert_allclose(exact(y), gate * s * up, rtol=tolerance, atol=tolerance / 10)
    np.testing.assert_allclose(exact(x.grad), expected, rtol=tolerance, atol=tolerance / 10)


def test_very_large_and_very_small_gates(library):
    x = paddle.to_tensor([[-1e4, -100.0, -80.0, 0.0, 80.0, 1e4] + [2.0] * 6], stop_gradient=False)
    y = native.swiglu_native(x)
    np.testing.assert_allclose(exact(y)[0], [0, 0, -160 * np.exp(-80), 0, 160, 2e4], rtol=1e-4)
    y.sum().backward()
    np.testing.assert_allclose(exact(x.grad)[0, [0, 3, 5]], [0, 1, 2], rtol=1e-5)
    assert np.isnan(exact(native.swiglu_native(paddle.to_tensor([[float("nan"), 1.0]])))).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_made_again_and_by_other_threads_bit_by_bit(library, dtype):
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        x = normal(400, 130, dtype=dtype)
        y = native.swiglu_native(x)
        again = remake.restore(remake.keep(y))
        assert again.data_ptr() != y.data_ptr()
        y.astype("float32").sum().backward()
        found.append([exact(t) for t in (y, again, x.grad)])
    for value, again, grad in found:
        np.testing.assert_array_equal(value, again)
        np.testing.assert_array_equal(value, found[0][0])
        np.testing.assert_array_equal(grad, found[0][2])


def test_inputs_that_do_not_lie_row_by_row(library):
    x = normal(6, 4).T
    np.testing.assert_allclose(exact(native.swiglu_native(x)), exact(swiglu_reference(x)), rtol=1e-5)


def test_without_gradients_nothing_is_kept(library):
    with paddle.no_grad():
        y = native.swiglu_native(normal(2, 4))
    assert y.stop_gradient and getattr(y, "remake", None) is None


def test_other_types_take_the_reference(library):
    assert native.swiglu_native(normal(2, 4).astype("float64")).dtype == paddle.float64
