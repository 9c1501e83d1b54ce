"""Cross-entropy of the native kernels against numpy and the reference, at every level that runs here."""

import math

import numpy as np
import paddle
import pytest

from erniekit.errors import DataError
from erniekit.ops import gradients
from erniekit.ops.cross_entropy import linear_cross_entropy_reference
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import cross_entropy as native

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
# N, D, V and positions of a chunk: single numbers, odd everything, several chunks, more than one block of V.
SHAPES = [(1, 1, 2, 1), (5, 3, 7, 2), (33, 17, 70, 16), (9, 4, 5000, 100), (0, 3, 5, 4), (40, 8, 1, 7)]
DTYPES = [("float32", 2e-5), ("bfloat16", 2e-2)]


def normal(*shape, seed=0, dtype="float32", trained=True):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    made = paddle.to_tensor(array).astype(dtype)
    made.stop_gradient = not trained
    return made


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


def by_hand(hidden, weight, bias, labels, *, transposed):
    """Loss, correct predictions, and gradients to hidden states, weight and bias, in float64."""
    logits = hidden @ (weight.T if transposed else weight) + bias
    largest = logits.max(-1, keepdims=True, initial=-np.inf)
    logp = logits - largest - np.log(np.exp(logits - largest).sum(-1, keepdims=True))
    rows = np.flatnonzero(labels != -100)
    gradient = np.exp(logp)
    gradient[rows, labels[rows]] -= 1
    gradient[labels == -100] = 0
    to_weight = gradient.T @ hidden if transposed else hidden.T @ gradient
    correct = (logits.argmax(-1) == labels).sum() if labels.size else 0
    to_hidden = gradient @ (weight if transposed else weight.T)
    return -logp[rows, labels[rows]].sum(), correct, to_hidden, to_weight, gradient.sum(0)


def near(found, expected, tolerance):
    assert found.shape == list(expected.shape)
    limit = tolerance * max(np.abs(expected).max(initial=0.0), 1.0)
    np.testing.assert_allclose(exact(found), expected, rtol=0, atol=limit)


def inputs(shape, dtype, *, transposed, with_bias=True, pattern="some"):
    n, d, v, _ = shape
    hidden = normal(n, d, dtype=dtype)
    weight = normal(*((v, d) if transposed else (d, v)), seed=1, dtype=dtype)
    bias = normal(v, seed=2, dtype=dtype) if with_bias else None
    rng = np.random.default_rng(3)
    labels = rng.integers(0, v, n)
    labels[rng.random(n) < {"all": 0.0, "some": 0.4, "none": 1.0}[pattern]] = -100
    if pattern == "first":
        labels[1:] = -100
    return hidden, weight, bias, labels


def call(hidden, weight, bias, labels, *, transposed, chunk, scale=None, wanted=True):
    return native.linear_cross_entropy_native(
        hidden,
        weight,
        bias,
        paddle.to_tensor(labels, dtype="int64"),
        transposed=transposed,
        chunk_tokens=chunk,
        wanted=wanted,
        scale=scale,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("pattern", ["all", "some", "none"])
def test_loss_and_gradients(library, shape, transposed, with_bias, pattern, dtype, tolerance):
    hidden, weight, bias, labels = inputs(
        shape, dtype, transposed=transposed, with_bias=with_bias, pattern=pattern
    )
    expected = by_hand(
        exact(hidden),
        exact(weight),
        exact(bias) if with_bias else 0.0,
        labels,
        transposed=transposed,
    )
    loss, correct = call(hidden, weight, bias, labels, transposed=transposed, chunk=shape[3])
    assert loss.shape == [] and loss.dtype == paddle.float32
    # bf16 logits are summed in fp32: only the gradients are rounded.
    assert float(loss) == pytest.approx(expected[0], rel=1e-5, abs=1e-5)
    assert float(correct) == expected[1]
    (loss * 0.5).backward()
    assert hidden.grad.dtype == hidden.dtype
    near(hidden.grad, 0.5 * expected[2], tolerance)
    near(gradients.of(weight), 0.5 * expected[3], tolerance)
    if with_bias:
        near(gradients.of(bias), 0.5 * expected[4], tolerance)
    assert weight.grad is None and weight.main_grad.dtype == paddle.float32


@pytest.mark.parametrize("scale", [None, 0.125])
@pytest.mark.parametrize("outer", [1.0, 3.0])
@pytest.mark.parametrize("earlier", [True, False])
def test_any_factor_of_the_backward_pass_is_right(library, scale, outer, earlier):
    """Known before or not, the first gradient of the weight or one to be added."""
    hidden, weight, bias, labels = inputs(SHAPES[2], "float32", transposed=True)
    expected = by_hand(exact(hidden), exact(weight), exact(bias), labels, transposed=True)
    start = 0.0
    if earlier:
        start = 2.0
        weight.main_grad, bias.main_grad = paddle.full_like(weight, 2.0), paddle.full_like(bias, 2.0)
    loss, _ = call(hidden, weight, bias, labels, transposed=True, chunk=16, scale=scale)
    factor = scale or 1.0
    assert float(loss) == pytest.approx(factor * expected[0], rel=1e-5)
    (loss if outer == 1.0 else loss * outer).backward()
    near(hidden.grad, outer * factor * expected[2], 2e-5)
    near(gradients.of(weight), start + outer * factor * expected[3], 2e-5)
    near(gradients.of(bias), start + outer * factor * expected[4], 2e-5)


def test_without_a_backward_pass_there_is_no_gradient(library):
    hidden, weight, bias, labels = inputs(SHAPES[1], "float32", transposed=True)
    call(hidden, weight, bias, labels, transposed=True, chunk=2)
    call(hidden, weight, bias, labels, transposed=True, chunk=2, scale=0.5)
    assert gradients.of(weight) is None and gradients.of(bias) is None


@pytest.mark.parametrize("scale", [None, 0.5])
def test_micro_batches_add_up(library, scale):
    shape = SHAPES[2]
    hidden, weight, bias, labels = inputs(shape, "bfloat16", transposed=False, pattern="all")
    for _ in range(3):
        call(hidden, weight, bias, labels, transposed=False, chunk=32, scale=scale)[0].backward()
    expected = by_hand(exact(hidden), exact(weight), exact(bias), labels, transposed=False)
    near(gradients.of(weight), 3 * (scale or 1.0) * expected[3], 1e-2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equals_the_reference(library, dtype):
    hidden, weight, bias, labels = inputs((20, 6, 31, 7), dtype, transposed=True)
    labels_N = paddle.to_tensor(labels)
    options = {"transposed": True, "chunk_tokens": 7, "wanted": False, "scale": 0.5}
    with paddle.no_grad():
        ours = native.linear_cross_entropy_native(hidden, weight, bias, labels_N, **options)
        plain = linear_cross_entropy_reference(hidden, weight, bias, labels_N, **options)
    assert float(ours[0]) == pytest.approx(float(plain[0]), rel=1e-5)
    assert float(ours[1]) == float(plain[1])
    assert ours[0].stop_gradient


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_threads_change_no_bit(library, dtype):
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        hidden, weight, bias, labels = inputs((70, 24, 333, 32), dtype, transposed=True)
        loss, _ = call(hidden, weight, bias, labels, transposed=True, chunk=32)
        loss.backward()
        found.append([loss, hidden.grad, gradients.of(weight), gradients.of(bias)])
    for one, two, three in zip(*found, strict=True):
        np.testing.assert_array_equal(exact(one), exact(two))
        np.testing.assert_array_equal(exact(one), exact(three))


def test_large_logits_and_small_probabilities(library):
    hidden, weight = paddle.to_tensor([[1000.0]], stop_gradient=False), paddle.to_tensor([[1.0], [-1.0]])
    loss, correct = call(hidden, weight, None, np.array([1]), transposed=True, chunk=1)
    assert float(loss) == 2000.0 and float(correct) == 0.0
    loss.backward()
    assert hidden.grad.item() == pytest.approx(2.0)


def test_of_equal_logits_the_first_is_the_prediction(library):
    hidden, weight = paddle.zeros([4, 2]), paddle.ones([50, 2])
    _, correct = call(hidden, weight, None, np.array([0, 1, 49, 0]), transposed=True, chunk=4, wanted=False)
    assert float(correct) == 2.0


def test_a_nan_is_not_hidden(library):
    for place in (0, 20):
        array = np.zeros((40, 1), np.float32)
        array[place] = np.nan
        loss, _ = call(
            paddle.ones([1, 1]), paddle.to_tensor(array), None, np.array([3]), transposed=True, chunk=1
        )
        assert math.isnan(float(loss))


@pytest.mark.parametrize("scale", [None, 1.0])
def test_what_is_frozen_gets_nothing(library, scale):
    hidden, weight, bias, labels = inputs(SHAPES[1], "float32", transposed=True, pattern="all")
    expected = by_hand(exact(hidden), exact(weight), exact(bias), labels, transposed=True)
    weight.stop_gradient = True
    call(hidden, weight, bias, labels, transposed=True, chunk=2, scale=scale)[0].backward()
    near(hidden.grad, expected[2], 2e-5)
    assert gradients.of(weight) is None
    weight.stop_gradient, hidden.stop_gradient, bias.stop_gradient = False, True, True
    call(hidden, weight, bias, labels, transposed=True, chunk=2, scale=scale)[0].backward()
    near(gradients.of(weight), expected[3], 2e-5)
    near(gradients.of(bias), expected[4], 2e-5)
    weight.stop_gradient = True
    assert call(hidden, weight, bias, labels, transposed=True, chunk=2)[0].stop_gradient


def test_a_computed_weight_and_inputs_that_do_not_lie_row_by_row(library):
    hidden, weight, _, labels = inputs(SHAPES[1], "float32", transposed=True, pattern="all")
    expected = by_hand(exact(hidden), 2 * exact(weight), 0.0, labels, transposed=True)
    turned = hidden.T.contiguous().detach().T
    turned.stop_gradient = False
    loss, _ = call(turned, (weight.T * 2.0).T, None, labels, transposed=True, chunk=2)
    loss.backward()
    near(turned.grad, expected[2], 2e-5)
    near(weight.grad, 2 * expected[3], 2e-5)


def test_mixed_types_take_the_reference(library):
    hidden, weight, _, labels = inputs(SHAPES[1], "float32", transposed=True)
    loss, _ = call(hidden.astype("bfloat16"), weight, None, labels, transposed=True, chunk=2, scale=0.5)
    loss.backward()
    assert weight.grad is not None


@pytest.mark.parametrize("wrong", [-1, 7])
def test_labels_outside_the_vocabulary_are_told(library, wrong):
    hidden, weight, bias, labels = inputs(SHAPES[1], "float32", transposed=True)
    labels[2] = wrong
    with pytest.raises(DataError, match=f"label {wrong} is outside the model's vocabulary of 7"):
        call(hidden, weight, bias, labels, transposed=True, chunk=2)


def test_chunks_are_equal_and_within_the_bound():
    assert native._chunk(2048, 554) == 512
    assert native._chunk(100, 1000) == 100
    assert native._chunk(600, 554) == 304
    assert native._chunk(10, 3) == 3
    assert native._chunk(0, 5) == 1
