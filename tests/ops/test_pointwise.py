"""Norm, rotation, SwiGLU, linear and dropout against numpy, in fp32 and in bf16 storage."""

import numpy as np
import paddle
import pytest

from erniekit.ops.dropout import dropout
from erniekit.ops.linear import add, linear_reference
from erniekit.ops.norm import rms_norm
from erniekit.ops.rope import rotate, rotations
from erniekit.ops.swiglu import swiglu

DTYPES = [("float32", 1e-5), ("bfloat16", 2e-2)]


def tensor(array, dtype="float32"):
    return paddle.to_tensor(np.asarray(array, "float32")).astype(dtype)


def numbers(result):
    return result.astype("float32").numpy()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 4), (2, 3, 8), (0, 4)])
def test_rms_norm(dtype, tolerance, shape):
    x, weight = np.random.default_rng(0).normal(size=shape), np.linspace(0.5, 2, shape[-1])
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight
    result = rms_norm(tensor(x, dtype), tensor(weight, dtype), 1e-5)
    assert str(result.dtype) == f"paddle.{dtype}"
    np.testing.assert_allclose(numbers(result), expected, rtol=tolerance, atol=tolerance)


def test_rms_norm_casts_before_the_weight():
    """In bf16 the normalised value is rounded first, as ERNIE does: 1/3 rounds up, times 3 is not 1."""
    x = tensor([[1.0, 1.0, 5.0]], "bfloat16")
    weight = tensor([3.0, 3.0, 3.0], "bfloat16")
    normed = numbers(
        (x.astype("float32") * paddle.rsqrt((x.astype("float32") ** 2).mean(-1))).astype("bfloat16")
    )
    expected = numbers(tensor(normed * 3.0, "bfloat16"))
    np.testing.assert_array_equal(numbers(rms_norm(x, weight, 0.0)), expected)


def test_rotation_by_hand():
    """Head of four: pairs (0,1) turn by the position, (2,3) by position / theta^(1/2)."""
    x = np.array([1.0, 0.0, 0.0, 2.0])
    turns = rotations(paddle.to_tensor([[0, 3]]), 4, 100.0)
    out = rotate(tensor(np.stack([x, x]).reshape(1, 2, 1, 4)), turns).numpy().reshape(2, 4)
    np.testing.assert_allclose(out[0], x, atol=1e-7)
    expected = [np.cos(3), np.sin(3), -2 * np.sin(0.3), 2 * np.cos(0.3)]
    np.testing.assert_allclose(out[1], expected, rtol=1e-6)


def test_rotation_keeps_products_of_equal_distance():
    rng = np.random.default_rng(2)
    q, k = rng.normal(size=(1, 1, 1, 16)), rng.normal(size=(1, 1, 1, 16))

    def product(at, to):
        turned = [
            rotate(tensor(x), rotations(paddle.to_tensor([[p]]), 16, 1e4)) for x, p in ((q, at), (k, to))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(5, 2) == pytest.approx(product(105, 102), rel=1e-4)
    assert product(5, 2) != pytest.approx(product(5, 3), rel=1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_swiglu(dtype, tolerance):
    x = np.random.default_rng(1).normal(size=(3, 5, 8))
    gate, up = x[..., :4], x[..., 4:]
    result = swiglu(tensor(x, dtype))
    np.testing.assert_allclose(
        numbers(result), gate / (1 + np.exp(-gate)) * up, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(dtype, tolerance, bias):
    rng = np.random.default_rng(3)
    x, w, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 5)), rng.normal(size=5)
    tensors = [tensor(a, dtype) for a in (x, w, b)]
    for t in tensors:
        t.stop_gradient = False
    result = linear_reference(tensors[0], tensors[1], tensors[2] if bias else None)
    assert str(result.dtype) == f"paddle.{dtype}"
    np.testing.assert_allclose(
        numbers(result), x @ w + (b if bias else 0), rtol=tolerance, atol=4 * tolerance
    )
    result.astype("float32").sum().backward()
    np.testing.assert_allclose(
        numbers(tensors[0].grad), np.ones((2, 3, 5)) @ w.T, rtol=tolerance, atol=4 * tolerance
    )
    np.testing.assert_allclose(
        numbers(tensors[1].grad), np.tile(x.sum((0, 1))[:, None], (1, 5)), rtol=tolerance, atol=4 * tolerance
    )


def test_bf16_sums_are_rounded_once():
    assert float(add(tensor([256.0], "bfloat16"), tensor([3.0], "bfloat16")).astype("float32")) == 260.0


def test_dropout_is_off_outside_training():
    x = paddle.ones([1000])
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    paddle.seed(0)
    dropped = dropout(x, 0.25, training=True).numpy()
    assert set(np.round(np.unique(dropped), 5)) == {0.0, np.float32(1.33333)}
    assert 0.15 < (dropped == 0).mean() < 0.35
