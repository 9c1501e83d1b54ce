"""The objective and the loop over it: no split of a global batch changes a gradient."""

import numpy as np
import paddle
import pytest

from erniekit import assemble
from erniekit.data.pack import collate
from erniekit.data.sample import Sample
from erniekit.ops import gradients
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from erniekit.train.objectives import build_objective


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


def build(folder, **changes):
    fields = dict(
        continue_training=True,
        compute_type="fp32",
        fine_tuning="Full",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        freeze=(),
    )
    return assemble.build_model(folder, **{**fields, **changes}).model


def samples(lengths, seed=0):
    rng = np.random.default_rng(seed)
    made = []
    for length in lengths:
        labels = rng.integers(0, 200, length).astype(np.int32)
        labels[rng.random(length) < 0.5] = -100
        labels[-1] = 5
        made.append(Sample(rng.integers(0, 200, length).astype(np.int32), labels, f"x:{length}"))
    return made


def summed(model, batches, objective, num_tokens):
    total = 0.0
    for batch in batches:
        loss, _ = objective(model, batch)
        (loss / num_tokens).backward()
        total += float(loss)
    found = {name: gradients.of(parameter).numpy().copy() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        gradients.clear(parameter)
    return total / num_tokens, found


def close(first, second, tolerance):
    assert first.keys() == second.keys()
    for name, gradient in first.items():
        scale = np.abs(gradient).max() + 1e-12
        assert np.abs(gradient - second[name]).max() / scale < tolerance, name


OBJECTIVE = build_objective("SFT", loss_subbatch_seqlen=16, use_sparse_head_and_loss_fn=True)


@pytest.mark.parametrize("size", [2, 4, 8])
def test_any_split_gives_the_same_gradient(folder, size):
    model = build(folder)
    rows = [(sample,) for sample in samples([9, 30, 4, 17, 22, 3, 11, 28])]
    num_tokens = sum(sample.num_trained for (sample,) in rows)
    one, expected = summed(model, [collate([row], pad_id=0) for row in rows], OBJECTIVE, num_tokens)
    batches = [collate(rows[start : start + size], pad_id=0) for start in range(0, 8, size)]
    many, found = summed(model, batches, OBJECTIVE, num_tokens)
    assert many == pytest.approx(one, rel=1e-6)
    close(expected, found, 1e-5)


def test_a_packed_row_computes_what_its_samples_compute_alone(folder):
    model = build(folder)
    parts = samples([9, 30, 4, 1, 17])
    num_tokens = sum(sample.num_trained for sample in parts)
    alone, expected = summed(model, [collate([(s,)], pad_id=0) for s in parts], OBJECTIVE, num_tokens)
    packed, found = summed(model, [collate([tuple(parts)], pad_id=0, pad_to=80)], OBJECTIVE, num_tokens)
    assert packed == pytest.approx(alone, rel=1e-5)
    close(expected, found, 1e-5)


@pytest.mark.parametrize(("chunk", "sparse"), [(1, True), (7, False), (1000, False), (1000, True)])
def test_how_the_head_is_computed_changes_nothing(folder, chunk, sparse):
    model = build(folder)
    batch = collate([tuple(samples([9, 30])), tuple(samples([12], seed=3))], pad_id=0)
    expected_loss, expected = summed(model, [batch], OBJECTIVE, 10)
    objective = build_objective("SFT", loss_subbatch_seqlen=chunk, use_sparse_head_and_loss_fn=sparse)
    loss, found = summed(model, [batch], objective, 10)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    close(expected, found, 1e-5)


def test_bf16_is_near_fp32(folder):
    batch = collate([tuple(samples([9, 30]))], pad_id=0)
    exact, _ = OBJECTIVE(build(folder), batch)
    rounded, _ = OBJECTIVE(build(folder, compute_type="bf16"), batch)
    assert float(rounded) == pytest.approx(float(exact), rel=0.02)
    assert float(rounded) != float(exact)


def test_frozen_parameters_get_no_gradient(folder):
    model = build(folder, freeze=("embed_tokens", r"layers\.0\."))
    loss, _ = OBJECTIVE(model, collate([tuple(samples([9, 30]))], pad_id=0))
    loss.backward()
    with_gradient = {
        name for name, parameter in model.named_parameters() if gradients.of(parameter) is not None
    }
    assert with_gradient and not any("embed" in name or "layers.0." in name for name in with_gradient)
    assert any("layers.1." in name for name in with_gradient)


def test_dropout_repeats_with_the_seed_and_rests_in_evaluation(folder):
    model = build(folder, hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    batch = collate([tuple(samples([9, 30]))], pad_id=0)

    def loss():
        paddle.seed(5)
        return float(OBJECTIVE(model, batch)[0])

    first = loss()
    assert loss() == first
    model.eval()
    assert loss() != first
    assert loss() == float(OBJECTIVE(build(folder), batch)[0])
