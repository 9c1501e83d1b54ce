"""Native log-probabilities against numpy in double precision, at every level of instructions here."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import log_probabilities as native
from tests.ops.test_log_probabilities import case, exact, run

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("vocabulary", [1, 16, 37, 8203])
def test_values_and_gradients(library, vocabulary, chunk, transposed):
    inputs = case(vocabulary=vocabulary, transposed=transposed)
    found = run(native.linear_log_probabilities_native, *inputs, transposed=transposed, chunk=chunk)
    for got, expected in zip(found, exact(*inputs, transposed), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_bf16(library):
    inputs = case(num_positions=33, width=64, vocabulary=250)
    rounded = [
        paddle.to_tensor(x.astype("float32")).astype("bfloat16").astype("float32").numpy() for x in inputs[:3]
    ]
    expected = exact(*(x.astype(np.float64) for x in rounded), *inputs[3:], False)
    found = run(
        native.linear_log_probabilities_native,
        *rounded,
        *inputs[3:],
        transposed=False,
        chunk=8,
        dtype="bfloat16",
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4, atol=1e-4)
    for got, right in zip(found[1:], expected[1:], strict=True):
        assert np.linalg.norm(got - right) < 6e-3 * np.linalg.norm(right)


def test_logits_far_apart(library):
    """Certain and hopeless tokens: nothing overflows, and 1 - p keeps its digits."""
    hidden, weight, _, labels, grad = case(scale=60.0)
    found = run(
        native.linear_log_probabilities_native, hidden, weight, None, labels, grad, transposed=False, chunk=5
    )
    expected = exact(hidden, weight, None, labels, grad, False)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found[1], expected[1], rtol=2e-3, atol=2e-3)


def test_gradients_of_two_calls_are_summed(library):
    """The output layer is an embedding table elsewhere, and micro-batches come after each other."""
    inputs = case(transposed=True)
    weight = paddle.to_tensor(inputs[1].astype("float32"), stop_gradient=False)
    hidden, labels = paddle.to_tensor(inputs[0].astype("float32")), paddle.to_tensor(inputs[3])
    for _ in range(2):
        out = native.linear_log_probabilities_native(
            hidden, weight, None, labels, transposed=True, chunk_tokens=4
        )
        (out * paddle.to_tensor(inputs[4].astype("float32"))).sum().backward()
    once = exact(*inputs[:2], None, *inputs[3:], True)[2]
    np.testing.assert_allclose(gradients.of(weight).numpy(), 2 * once, rtol=1e-4, atol=1e-4)


def test_no_position(library):
    weight = paddle.ones([3, 5])
    weight.stop_gradient = False
    hidden = paddle.zeros([0, 3])
    hidden.stop_gradient = False
    out = native.linear_log_probabilities_native(
        hidden, weight, None, paddle.zeros([0], "int64"), transposed=False, chunk_tokens=4
    )
    assert out.shape == [0]
    (out.sum() + weight.sum() * 0).backward()
    assert not gradients.of(weight).numpy().any()


def test_mixed_types_go_to_the_reference(library):
    hidden, weight, _, labels, grad = case()
    mixed = paddle.to_tensor(weight.astype("float32")).astype("bfloat16")
    out = native.linear_log_probabilities_native(
        paddle.to_tensor(hidden.astype("float32")),
        mixed,
        None,
        paddle.to_tensor(labels),
        transposed=False,
        chunk_tokens=4,
    )
    expected = exact(hidden, mixed.astype("float32").numpy().astype(np.float64), None, labels, grad, False)[0]
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-4, atol=1e-4)
