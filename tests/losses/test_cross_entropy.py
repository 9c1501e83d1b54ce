"""Chunked cross-entropy against the whole logits and autograd, and against numbers worked by hand."""

import math

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.losses import cross_entropy
from erniekit.losses.cross_entropy import Head, chunked_cross_entropy
from erniekit.ops import gradients


def tensor(array, *, grad=True, dtype="float32"):
    made = paddle.to_tensor(np.asarray(array, dtype="float32")).astype(dtype)
    made.stop_gradient = not grad
    return made


def plain(hidden, weight, labels, *, transposed, bias=None):
    """Reference: all logits at once, in float64."""
    logits = hidden @ (weight.T if transposed else weight)
    if bias is not None:
        logits = logits + bias
    logits = logits - logits.max(-1, keepdims=True)
    logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    counted = labels >= 0
    rows = np.flatnonzero(counted)
    loss = -logp[rows, labels[rows]].sum()
    gradient = np.exp(logp)
    gradient[rows, labels[rows]] -= 1
    gradient[~counted] = 0
    to_hidden = gradient @ (weight if transposed else weight.T)
    to_weight = gradient.T @ hidden if transposed else hidden.T @ gradient
    correct = (logits.argmax(-1) == labels)[counted].sum()
    return loss, to_hidden, to_weight, gradient.sum(0), correct


def test_two_classes_by_hand():
    hidden, weight = tensor([[1.0]]), tensor([[0.0], [math.log(3.0)]])
    loss, metrics = chunked_cross_entropy(
        hidden, Head(weight, transposed=True), paddle.to_tensor([1]), chunk_tokens=4
    )
    # logits 0 and log 3: the probability of class 1 is 3/4.
    assert float(loss) == pytest.approx(-math.log(0.75), rel=1e-6)
    assert metrics == {"num_tokens": 1.0, "num_correct": 1.0}
    (loss * 2).backward()
    assert gradients.of(weight).numpy().ravel() == pytest.approx([2 * 0.25, -2 * 0.25], rel=1e-6)
    assert hidden.grad.numpy().ravel() == pytest.approx([-2 * 0.25 * math.log(3.0)], rel=1e-6)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 13),
    d=st.integers(1, 9),
    v=st.integers(2, 23),
    chunk=st.integers(1, 20),
    transposed=st.booleans(),
    with_bias=st.booleans(),
    sparse=st.booleans(),
    ignored=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_equals_the_whole_logits(n, d, v, chunk, transposed, with_bias, sparse, ignored, seed):
    rng = np.random.default_rng(seed)
    hidden64, labels = rng.normal(size=(n, d)), rng.integers(0, v, n)
    weight64 = rng.normal(size=(v, d) if transposed else (d, v))
    bias64 = rng.normal(size=v) if with_bias else None
    labels[rng.random(n) < ignored] = -100
    hidden, weight = tensor(hidden64), tensor(weight64)
    bias = tensor(bias64) if with_bias else None
    loss, metrics = chunked_cross_entropy(
        hidden,
        Head(weight, transposed=transposed, bias=bias),
        paddle.to_tensor(labels),
        chunk_tokens=chunk,
        only_labelled=sparse,
    )
    expected, to_hidden, to_weight, to_bias, correct = plain(
        hidden64, weight64, labels, transposed=transposed, bias=bias64
    )
    assert float(loss) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert metrics["num_tokens"] == (labels >= 0).sum()
    assert metrics["num_correct"] == correct
    (loss * 0.5).backward()
    np.testing.assert_allclose(hidden.grad.numpy(), 0.5 * to_hidden, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients.of(weight).numpy(), 0.5 * to_weight, rtol=1e-4, atol=1e-5)
    if with_bias:
        np.testing.assert_allclose(gradients.of(bias).numpy(), 0.5 * to_bias, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_takes_no_gradient_but_passes_one_on():
    hidden, weight = tensor([[1.0, 2.0]]), tensor([[0.5, 1.0], [1.0, -1.0], [0.0, 2.0]], grad=False)
    loss, _ = chunked_cross_entropy(
        hidden, Head(weight, transposed=True), paddle.to_tensor([2]), chunk_tokens=1
    )
    loss.backward()
    assert gradients.of(weight) is None
    assert np.abs(hidden.grad.numpy()).sum() > 0


def test_without_gradients_none_are_computed():
    hidden, weight = tensor([[1.0]]), tensor([[1.0], [2.0]])
    with paddle.no_grad():
        loss, _ = chunked_cross_entropy(
            hidden, Head(weight, transposed=True), paddle.to_tensor([0]), chunk_tokens=1
        )
    assert loss.stop_gradient


def test_large_logits_do_not_overflow():
    loss, _ = chunked_cross_entropy(
        tensor([[1000.0]]),
        Head(tensor([[1.0], [-1.0]]), transposed=True),
        paddle.to_tensor([1]),
        chunk_tokens=1,
    )
    assert float(loss) == pytest.approx(2000.0)


def test_bf16_storage_gives_bf16_gradients_near_the_exact_ones():
    rng = np.random.default_rng(0)
    hidden64, weight64, labels = rng.normal(size=(6, 8)), rng.normal(size=(11, 8)), rng.integers(0, 11, 6)
    hidden, weight = tensor(hidden64, dtype="bfloat16"), tensor(weight64, dtype="bfloat16")
    loss, _ = chunked_cross_entropy(
        hidden, Head(weight, transposed=True), paddle.to_tensor(labels), chunk_tokens=4
    )
    loss.backward()
    expected, to_hidden, to_weight, _, _ = plain(hidden64, weight64, labels, transposed=True)
    assert float(loss) == pytest.approx(expected, rel=0.01)
    assert hidden.grad.dtype == paddle.bfloat16
    np.testing.assert_allclose(gradients.of(weight).numpy(), to_weight, atol=0.05)
    np.testing.assert_allclose(hidden.grad.astype("float32").numpy(), to_hidden, atol=0.05)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("sparse", [True, False])
def test_nothing_to_learn_is_a_loss_and_gradients_of_zero(transposed, sparse):
    hidden, weight = tensor(np.ones((3, 4))), tensor(np.ones((5, 4) if transposed else (4, 5)))
    loss, metrics = chunked_cross_entropy(
        hidden,
        Head(weight, transposed=transposed),
        paddle.to_tensor([-100] * 3),
        chunk_tokens=2,
        only_labelled=sparse,
    )
    assert float(loss) == 0.0 and metrics == {"num_tokens": 0.0, "num_correct": 0.0}
    loss.backward()
    assert not hidden.grad.numpy().any() and not gradients.of(weight).numpy().any()
    assert gradients.of(weight).shape == weight.shape


def test_a_small_label_probability_keeps_its_gradient_and_loss():
    """exp(-200) is no fp32 number: the loss must not be taken from the label's own probability."""
    hidden, weight = tensor([[1.0]]), tensor([[0.0], [200.0]])
    loss, _ = chunked_cross_entropy(
        hidden, Head(weight, transposed=True), paddle.to_tensor([0]), chunk_tokens=1
    )
    assert float(loss) == pytest.approx(200.0)
    loss.backward()
    assert gradients.of(weight).numpy().ravel() == pytest.approx([-1.0, 1.0])


def test_equal_logits_count_the_first_class_as_the_prediction():
    hidden, head = tensor(np.zeros((4, 2))), Head(tensor(np.ones((5, 2))), transposed=True)
    _, metrics = chunked_cross_entropy(hidden, head, paddle.to_tensor([0, 1, 4, 0]), chunk_tokens=4)
    assert metrics["num_correct"] == 2.0


def test_no_more_logits_at_once_than_the_bound(monkeypatch):
    """A chunk of 32,768 positions, the default, would be 13 GB of logits for ERNIE's vocabulary."""
    seen = []
    plain = cross_entropy.linear_cross_entropy
    monkeypatch.setattr(cross_entropy, "MAX_LOGITS", 21)
    monkeypatch.setattr(
        cross_entropy,
        "linear_cross_entropy",
        lambda *given, chunk_tokens, **more: (
            seen.append(chunk_tokens) or plain(*given, chunk_tokens=chunk_tokens, **more)
        ),
    )
    hidden, head = tensor(np.ones((8, 2))), Head(tensor(np.ones((2, 7))), transposed=False)
    loss, _ = chunked_cross_entropy(hidden, head, paddle.to_tensor([1] * 8), chunk_tokens=32768)
    assert seen == [3]
    assert float(loss) == pytest.approx(8 * math.log(7.0), rel=1e-6)


def test_a_scale_multiplies_the_loss_and_every_gradient():
    found = []
    for scale in (None, 0.25):
        hidden, weight = tensor([[1.0, 2.0]]), tensor([[0.5, 1.0], [1.0, -1.0], [0.0, 2.0]])
        loss, metrics = chunked_cross_entropy(
            hidden, Head(weight, transposed=True), paddle.to_tensor([2]), chunk_tokens=1, scale=scale
        )
        assert metrics["num_tokens"] == 1.0
        (loss * 2.0).backward()
        found.append([float(loss), hidden.grad.numpy(), gradients.of(weight).numpy()])
    for plain, scaled in zip(*found, strict=True):
        np.testing.assert_allclose(0.25 * plain, scaled, rtol=1e-6)


@pytest.mark.parametrize("num_ignored", [0, 1, 4, 39, 40])
def test_the_same_whether_few_or_many_are_labelled(num_ignored):
    """On both sides of the share below which labelled positions are gathered."""
    rng = np.random.default_rng(num_ignored)
    hidden_array = rng.normal(size=(40, 6)).astype(np.float32)
    labels = rng.integers(0, 9, 40)
    labels[rng.permutation(40)[:num_ignored]] = -100
    results = []
    for only_labelled in (True, False):
        hidden = paddle.to_tensor(hidden_array, stop_gradient=False)
        weight = paddle.to_tensor(np.arange(54, dtype=np.float32).reshape(9, 6) / 20)
        loss, metrics = chunked_cross_entropy(
            hidden,
            Head(weight, transposed=True),
            paddle.to_tensor(labels),
            chunk_tokens=7,
            only_labelled=only_labelled,
        )
        loss.backward()
        results.append((float(loss), hidden.grad.numpy(), metrics))
    (gathered, to_gathered, told), (whole, to_whole, also_told) = results
    assert gathered == pytest.approx(whole, rel=1e-6) and told == also_told
    assert told["num_tokens"] == 40 - num_ignored
    np.testing.assert_allclose(to_gathered, to_whole, rtol=1e-5, atol=1e-7)
