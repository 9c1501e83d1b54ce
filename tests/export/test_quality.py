"""Figures of quality against numpy."""

import math
from dataclasses import replace

import numpy as np
import pytest

from erniekit.assemble import load_for_inference
from erniekit.errors import DataError
from erniekit.export.quality import Quality, compare, hidden_states
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.export.batches import batches


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "model")
    return load_for_inference(folder, compute_type="fp32").model


def test_a_model_is_itself(model):
    given = batches()
    states = hidden_states(model, given)
    found = compare(model, given, states, states)
    assert found.divergence == pytest.approx(0, abs=1e-7) and found.same == 1.0
    assert found.drop == 0 and found.loss == found.quantised_loss
    assert (found.num_tokens, found.num_labels) == (96, 88)


def test_by_numpy(model):
    given = batches()
    one = hidden_states(model, given)
    rng = np.random.default_rng(0)
    other = [states + 0.3 * rng.normal(size=states.shape).astype(np.float32) for states in one]
    found = compare(model, given, one, other)
    table = model.head().weight.numpy()
    logs = []
    for states in (one, other):
        logits = np.concatenate([each.reshape(-1, each.shape[-1]) for each in states]) @ table.T
        logits = logits.astype(np.float64) - logits.max(1, keepdims=True)
        logs.append(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    labels = np.concatenate([batch.labels.reshape(-1) for batch in given])
    kept = np.flatnonzero(labels >= 0)
    losses = [-log[kept, labels[kept]].mean() for log in logs]
    assert found.loss == pytest.approx(losses[0], rel=1e-5)
    assert found.quantised_loss == pytest.approx(losses[1], rel=1e-5)
    assert found.divergence == pytest.approx((np.exp(logs[0]) * (logs[0] - logs[1])).sum(1).mean(), rel=1e-4)
    assert found.same == pytest.approx((logs[0].argmax(1) == logs[1].argmax(1)).mean())
    assert found.drop == pytest.approx(math.exp(losses[1] - losses[0]) - 1, rel=1e-4)
    assert f"divergence {found.divergence:.4f}" in found.in_words() and found.to_json()["drop"] == found.drop


def test_padding_does_not_count(model):
    (batch,) = batches(1)
    states = hidden_states(model, [batch])
    labels = batch.labels.copy()
    labels[0, 10:] = -100
    short = replace(batch, labels=labels, lengths=(10, 24))
    found = compare(model, [short], states, states)
    assert (found.num_tokens, found.num_labels) == (34, 10 + 22)


def test_nothing_to_predict(model):
    (batch,) = batches(1)
    states = hidden_states(model, [batch])
    with pytest.raises(DataError, match="no token to predict"):
        compare(model, [replace(batch, labels=np.full_like(batch.labels, -100))], states, states)


def test_a_loss_beyond_all_measure():
    assert Quality(1.0, 1e6, 1.0, 0.0, 1, 1).drop > 1e100
