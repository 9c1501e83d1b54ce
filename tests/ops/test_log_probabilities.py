"""Log-probabilities of given tokens against numpy in double precision, with the gradients."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients
from erniekit.ops import log_probabilities as module
from erniekit.ops.log_probabilities import linear_log_probabilities_reference

NO_LABEL = -100


def exact(hidden, weight, bias, labels, grad, transposed):
    """Values and gradients of hidden, weight and bias, in double precision."""
    matrix = weight.T if transposed else weight
    logits = hidden @ matrix + (0 if bias is None else bias)
    logits -= logits.max(-1, keepdims=True)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows, labelled = np.arange(len(labels)), labels != NO_LABEL
    safe = np.where(labelled, labels, 0)
    values = np.where(labelled, log_probabilities[rows, safe], 0.0)
    to_logits = -np.exp(log_probabilities)
    to_logits[rows, safe] += 1
    to_logits *= (grad * labelled)[:, None]
    to_weight = hidden.T @ to_logits
    return values, to_logits @ matrix.T, to_weight.T if transposed else to_weight, to_logits.sum(0)


def case(num_positions=11, width=6, vocabulary=37, *, transposed=False, scale=1.0, seed=0):
    random = np.random.default_rng(seed)
    hidden = random.normal(size=(num_positions, width)) * scale
    weight = random.normal(size=(vocabulary, width) if transposed else (width, vocabulary))
    labels = random.integers(0, vocabulary, num_positions)
    labels[2:4] = NO_LABEL
    labels[-1] = vocabulary - 1
    return hidden, weight, random.normal(size=vocabulary), labels, random.normal(size=num_positions)


def run(function, hidden, weight, bias, labels, grad, *, transposed, chunk, dtype="float32"):
    """Values and gradients as arrays in double precision."""
    tensors = [
        None if x is None else paddle.to_tensor(x.astype("float32")).astype(dtype)
        for x in (hidden, weight, bias)
    ]
    for tensor in tensors:
        if tensor is not None:
            tensor.stop_gradient = False
    out = function(*tensors, paddle.to_tensor(labels), transposed=transposed, chunk_tokens=chunk)
    (out * paddle.to_tensor(grad.astype("float32"))).sum().backward()
    found = [None if t is None else gradients.of(t).numpy().astype(np.float64) for t in tensors]
    return out.numpy().astype(np.float64), *found


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_values_and_gradients(transposed, chunk):
    inputs = case(transposed=transposed)
    found = run(linear_log_probabilities_reference, *inputs, transposed=transposed, chunk=chunk)
    for got, expected in zip(found, exact(*inputs, transposed), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-5)


def test_without_bias_and_with_frozen_weights():
    hidden, weight, _, labels, grad = case()
    frozen = paddle.to_tensor(weight.astype("float32"))
    x = paddle.to_tensor(hidden.astype("float32"), stop_gradient=False)
    out = linear_log_probabilities_reference(
        x, frozen, None, paddle.to_tensor(labels), transposed=False, chunk_tokens=3
    )
    (out * paddle.to_tensor(grad.astype("float32"))).sum().backward()
    expected = exact(hidden, weight, None, labels, grad, False)
    np.testing.assert_allclose(out.numpy(), expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), expected[1], rtol=1e-4, atol=1e-5)
    assert gradients.of(frozen) is None


def test_logits_held_at_once_are_bounded(monkeypatch):
    seen = []
    monkeypatch.setattr(module, "MAX_LOGITS", 100)
    monkeypatch.setattr(
        module, "choose", lambda name: lambda *a, **kw: seen.append((name, kw["chunk_tokens"]))
    )
    weight = paddle.zeros([4, 30])
    module.linear_log_probabilities(
        paddle.zeros([9, 4]), weight, None, paddle.zeros([9]), transposed=False, chunk_tokens=1024
    )
    module.linear_log_probabilities(
        paddle.zeros([9, 4]), weight, None, paddle.zeros([9]), transposed=False, chunk_tokens=2
    )
    assert seen == [("linear_log_probabilities", 3), ("linear_log_probabilities", 2)]
