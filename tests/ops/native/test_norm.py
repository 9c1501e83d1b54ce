"""RMSNorm of the native kernels against the reference and numpy, at every level that runs here."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients, remake
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import norm as native
from erniekit.ops.norm import add_rms_norm_reference, rms_norm_reference

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
SHAPES = [(1, 1), (3, 5, 7), (2, 70), (1, 1, 64), (67, 33), (0, 9)]
DTYPES = [("float32", 1e-5), ("bfloat16", 1e-2)]
EPSILON = 1e-5


def normal(*shape, seed=0, dtype="float32", trained=False):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    made = paddle.to_tensor(array).astype(dtype)
    made.stop_gradient = not trained
    return made


def parameter(size, dtype):
    made = paddle.create_parameter([size], dtype, default_initializer=paddle.nn.initializer.Constant(0.0))
    made.set_value((1.0 + 0.3 * normal(size, seed=9)).astype(dtype))
    return made


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


def near(found, expected, tolerance):
    assert found.shape == list(expected.shape)
    limit = tolerance * max(np.abs(expected).max(initial=0.0), 1.0)
    np.testing.assert_allclose(exact(found), expected, rtol=0, atol=limit)


def by_hand(x, weight, grad):
    """Gradients in float64 of rms_norm to x and weight."""
    width = max(x.shape[-1], 1)
    r = ((x**2).sum(-1, keepdims=True) / width + EPSILON) ** -0.5
    pull = (grad * weight * x).sum(-1, keepdims=True) / width
    grad_x = grad * weight * r - x * r**3 * pull
    return grad_x, (grad * x * r).reshape(-1, x.shape[-1]).sum(0)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_norm_and_gradients(library, shape, dtype, tolerance):
    x, weight = normal(*shape, dtype=dtype, trained=True), parameter(shape[-1], dtype)
    grad = normal(*shape, seed=2, dtype=dtype)
    for rounds in (1, 2):
        x.grad = None
        y = native.rms_norm_native(x, weight, EPSILON)
        assert y.dtype == x.dtype
        near(y, exact(rms_norm_reference(x, weight, EPSILON)), tolerance)
        y.backward(grad)
        grad_x, grad_weight = by_hand(exact(x), exact(weight), exact(grad))
        near(x.grad, grad_x, tolerance)
        near(gradients.of(weight), rounds * grad_weight, tolerance / 2)
        assert weight.grad is None and weight.main_grad.dtype == paddle.float32


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("used", ["both", "sum", "normed"])
def test_sum_and_norm_and_gradients(library, shape, used, dtype, tolerance):
    x = normal(*shape, dtype=dtype, trained=True)
    delta = normal(*shape, seed=1, dtype=dtype, trained=True)
    weight = parameter(shape[-1], dtype)
    grad_sum, grad = normal(*shape, seed=2, dtype=dtype), normal(*shape, seed=3, dtype=dtype)
    total, normed = native.add_rms_norm_native(x, delta, weight, EPSILON)
    expected_total, expected_normed = add_rms_norm_reference(x, delta, weight, EPSILON)
    np.testing.assert_array_equal(exact(total), exact(expected_total))
    near(normed, exact(expected_normed), tolerance)
    used_tensors = [t for t, name in ((total, "sum"), (normed, "normed")) if used in ("both", name)]
    used_grads = [g for g, name in ((grad_sum, "sum"), (grad, "normed")) if used in ("both", name)]
    paddle.autograd.backward(used_tensors, used_grads)
    expected, expected_weight = by_hand(exact(total), exact(weight), exact(grad))
    expected = (expected if used != "sum" else 0) + (exact(grad_sum) if used != "normed" else 0)
    near(x.grad, expected, tolerance)
    near(delta.grad, expected, tolerance)
    if used == "sum":
        assert gradients.of(weight) is None
    else:
        near(gradients.of(weight), expected_weight, tolerance / 2)


def test_bf16_is_rounded_where_the_reference_rounds(library):
    x, weight = normal(50, 96, dtype="bfloat16"), parameter(96, "bfloat16")
    expected = exact(rms_norm_reference(x, weight, EPSILON))
    # The sums of squares differ in their last bit, which moves a rounding now and then.
    assert (exact(native.rms_norm_native(x, weight, EPSILON)) != expected).mean() < 0.02


def test_each_input_gets_a_gradient_of_its_own(library):
    """Paddle adds gradients in place: one tensor for two inputs would give both what belongs to one."""
    x, delta = normal(2, 3, trained=True), normal(2, 3, seed=1, trained=True)
    weight = parameter(3, "float32")
    branch = x * 1.0
    total, normed = native.add_rms_norm_native(branch, delta * 1.0, weight, EPSILON)
    (total.sum() + normed.sum() + (branch * 5.0).sum()).backward()
    np.testing.assert_allclose(exact(x.grad), exact(delta.grad) + 5.0, rtol=1e-6)
    only = native.add_rms_norm_native(x, delta, weight, EPSILON)[0]
    x.grad = delta.grad = None
    only.sum().backward()
    assert x.grad.data_ptr() != delta.grad.data_ptr()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_made_again_bit_by_bit(library, dtype):
    x, delta = normal(5, 37, dtype=dtype, trained=True), normal(5, 37, seed=1, dtype=dtype, trained=True)
    weight = parameter(37, dtype)
    for normed in (
        native.rms_norm_native(x, weight, EPSILON),
        native.add_rms_norm_native(x, delta, weight, EPSILON)[1],
    ):
        kept = remake.keep(normed)
        again = remake.restore(kept)
        assert again.data_ptr() != normed.data_ptr()
        np.testing.assert_array_equal(exact(again), exact(normed))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_change_no_bit(library, dtype):
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        x, weight = normal(301, 45, dtype=dtype, trained=True), parameter(45, dtype)
        total, normed = native.add_rms_norm_native(x, normal(301, 45, seed=1, dtype=dtype), weight, EPSILON)
        (total.astype("float32") * 2 + normed.astype("float32")).sum().backward()
        found.append([exact(t) for t in (total, normed, x.grad, gradients.of(weight))])
    for one, two, three in zip(*found, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


@pytest.mark.parametrize("frozen", ["x", "delta", "weight", "x and delta"])
def test_what_is_frozen_gets_nothing(library, frozen):
    x = normal(4, 6, trained="x" not in frozen)
    delta = normal(4, 6, seed=1, trained="delta" not in frozen)
    weight = parameter(6, "float32")
    weight.stop_gradient = frozen == "weight"
    total, normed = native.add_rms_norm_native(x, delta, weight, EPSILON)
    grad = normal(4, 6, seed=2)
    (normed * grad).sum().backward()
    grad_x, grad_weight = by_hand(exact(total), exact(weight), exact(grad))
    for tensor in (x, delta):
        if tensor.stop_gradient:
            assert tensor.grad is None
        else:
            near(tensor.grad, grad_x, 1e-5)
    if weight.stop_gradient:
        assert gradients.of(weight) is None
    else:
        near(gradients.of(weight), grad_weight, 1e-5)


def test_a_computed_weight(library):
    x, weight = normal(4, 6), parameter(6, "float32")
    native.rms_norm_native(x, weight * 2.0, EPSILON).sum().backward()
    near(weight.grad, 2 * by_hand(exact(x), 2 * exact(weight), np.ones((4, 6)))[1], 1e-5)


def test_inputs_that_do_not_lie_row_by_row(library):
    x, weight = normal(7, 4).T, parameter(7, "float32")
    near(native.rms_norm_native(x, weight, EPSILON), exact(rms_norm_reference(x, weight, EPSILON)), 1e-5)


def test_mixed_types_take_the_reference(library):
    x, weight = normal(4, 6, dtype="bfloat16"), parameter(6, "float32")
    assert native.rms_norm_native(x, weight, EPSILON).dtype == paddle.bfloat16
    total, normed = native.add_rms_norm_native(x, x, weight, EPSILON)
    assert total.dtype == normed.dtype == paddle.bfloat16


def test_nothing_is_kept_without_gradients(library):
    with paddle.no_grad():
        total, normed = native.add_rms_norm_native(
            normal(4, 6), normal(4, 6), parameter(6, "float32"), EPSILON
        )
    assert total.stop_gradient and normed.stop_gradient and getattr(normed, "remake", None) is None
