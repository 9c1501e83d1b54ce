"""The reference's numbers: asked once, kept on disk, found again only when they are of the same model."""

import json
import shutil

import numpy as np
import paddle
import pytest

from erniekit.data.pack import collate
from erniekit.errors import CheckpointError
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from erniekit.train.reference import ModelReference, digest_of, score_once
from tests.train.pairs import build, random_pair

PAIRS = [random_pair(4, 3, 2, seed) for seed in range(5)]
BATCHES = [collate([tuple(PAIRS[:2])], pad_id=0), collate([tuple(PAIRS[2:])], pad_id=0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def model(folder):
    return build(folder, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5)


class Counting:
    """Makes references, and counts how often it is asked."""

    def __init__(self, model):
        self.model, self.asked = model, 0

    def __call__(self):
        self.asked += 1
        return ModelReference(self.model, None, loss_subbatch_seqlen=64)


def rows(reference, batches=BATCHES):
    found = [reference.of(None, batch) for batch in batches]
    return np.concatenate([np.stack([x.chosen_P.numpy(), x.rejected_P.numpy()], 1) for x in found])


def test_scored_once_and_kept(model, tmp_path):
    build_reference, cache = Counting(model), tmp_path / "cache.json"
    first = rows(score_once(BATCHES, build_reference, cache, "digest"))
    assert build_reference.asked == 1
    online = rows(ModelReference(model, None, loss_subbatch_seqlen=64))
    np.testing.assert_array_equal(first, online, "to the last bit")
    again = rows(score_once(BATCHES, build_reference, cache, "digest"))
    assert build_reference.asked == 1
    np.testing.assert_array_equal(first, again)


def test_only_what_is_missing_is_scored(model, tmp_path):
    cache = tmp_path / "cache.json"
    score_once(BATCHES[:1], Counting(model), cache, "digest")
    seen = []
    score_once(BATCHES, lambda: seen.append(1) or Counting(model)(), cache, "digest")
    assert seen == [1] and len(json.loads(cache.read_text())["pairs"]) == len(PAIRS)


@pytest.mark.parametrize(
    "content", ["", "{", '{"reference": "digest"}', '{"reference": "digest", "pairs": {"a": 1}}']
)
def test_a_broken_cache_is_not_used(model, tmp_path, content):
    cache = tmp_path / "cache.json"
    cache.write_text(content)
    build_reference = Counting(model)
    score_once(BATCHES, build_reference, cache, "digest")
    assert build_reference.asked == 1


def test_numbers_of_another_model_are_not_used(model, tmp_path):
    cache = tmp_path / "cache.json"
    score_once(BATCHES, Counting(model), cache, "one")
    build_reference = Counting(model)
    score_once(BATCHES, build_reference, cache, "another")
    assert build_reference.asked == 1


def test_a_resumed_run_keeps_its_reference(model, tmp_path):
    """Another model on resume is told, not trained against."""
    cache = tmp_path / "cache.json"
    score_once(BATCHES, Counting(model), cache, "one", resumed=True)
    build_reference = Counting(model)
    score_once(BATCHES, build_reference, cache, "one", resumed=True)
    with pytest.raises(CheckpointError, match="bring it back"):
        score_once(BATCHES, build_reference, cache, "another", resumed=True)
    assert build_reference.asked == 0


def test_changed_numbers_are_not_used(model, tmp_path):
    cache = tmp_path / "cache.json"
    first = rows(score_once(BATCHES, Counting(model), cache, "digest"))
    content = json.loads(cache.read_text())
    key = next(iter(content["pairs"]))
    content["pairs"][key][0] += 1.0
    cache.write_text(json.dumps(content))
    again = rows(score_once(BATCHES, Counting(model), cache, "digest"))
    np.testing.assert_array_equal(first, again)


def test_asking_leaves_the_model_and_the_generator_as_they_were(model, tmp_path):
    model.train()
    paddle.seed(3)
    expected = paddle.rand([4]).numpy()
    paddle.seed(3)
    score_once(BATCHES, Counting(model), tmp_path / "cache.json", "digest")
    np.testing.assert_array_equal(paddle.rand([4]).numpy(), expected)
    assert model.training


def test_without_dropout_and_gradients(model):
    model.train()
    reference = ModelReference(model, None, loss_subbatch_seqlen=64)
    np.testing.assert_array_equal(rows(reference), rows(reference))
    assert reference.of(None, BATCHES[0]).chosen_P.stop_gradient


def test_routers_are_not_watched_meanwhile(tmp_path):
    from erniekit.testing.tiny_checkpoint import tiny_moe_config

    experts = build(write_tiny_checkpoint(tmp_path / "moe", tiny_moe_config()))
    experts.router_records = []
    ModelReference(experts, None, loss_subbatch_seqlen=64).of(None, BATCHES[0])
    assert experts.router_records == []


def test_digest(folder, tmp_path):
    digest = digest_of(folder, "fp32")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert digest_of(copy, "fp32") == digest
    assert digest_of(copy, "bf16") != digest
    (copy / "optimizer.safetensors").write_bytes(b"x")
    assert digest_of(copy, "fp32") == digest
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(bytes(data))
    assert digest_of(copy, "fp32") != digest


def test_the_adapter_is_off(model):
    """What turns it off surrounds the pass."""
    from contextlib import contextmanager

    events = []

    @contextmanager
    def off(asked):
        events.append(("off", asked is model))
        yield
        events.append(("on", asked is model))

    ModelReference(None, off, loss_subbatch_seqlen=64).of(model, BATCHES[0])
    assert events == [("off", True), ("on", True)]
