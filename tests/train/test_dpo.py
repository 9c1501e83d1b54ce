"""Preference training: one forward pass over shared prompts, its loss, its gradients, its figures."""

import math

import numpy as np
import paddle
import pytest

from erniekit.data.pack import collate
from erniekit.data.vision_tokens import VisionTokens
from erniekit.errors import DataError, RunError
from erniekit.ops import backend, gradients
from erniekit.testing.tiny_checkpoint import tiny_moe_config, write_tiny_checkpoint
from erniekit.train.dpo import (
    PreferenceObjective,
    answer_lengths,
    answer_log_probabilities,
    token_log_probabilities,
)
from erniekit.train.evaluation import evaluate
from erniekit.train.reference import CachedReference, ModelReference
from erniekit.train.step_loss import StepLoss
from tests.train.pairs import build, random_pair, settings

PAIRS = [random_pair(9, 5, 7, 1), random_pair(3, 12, 2, 2), random_pair(1, 4, 4, 3), random_pair(20, 1, 9, 4)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(folder):
    return build(folder)


@pytest.fixture(params=["native", "paddle"])
def kernels(request, monkeypatch):
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    before = backend.current_backend()
    if request.param == "native" and backend.use_kernels("auto") != "native":
        pytest.skip("no native kernels here")
    yield backend.use_kernels(request.param)
    backend.use_kernels("native" if before == "native" else "paddle")


def tokens_alone(model, side):
    """Log-probabilities of an answer's tokens from the logits of its own forward pass."""
    batch = collate([(side,)], pad_id=0)
    inputs = [paddle.to_tensor(x) for x in (batch.input_ids, batch.position_ids, batch.attend_from)]
    types = {}
    if model.config.vision_tokens().types:
        types["token_type_ids_BT"] = paddle.to_tensor((batch.input_ids % 2 == 0).astype("int64"))
    hidden = model(*inputs, **types)[0, : len(side)]
    log_p = paddle.nn.functional.log_softmax(model.logits(hidden).astype("float64"), axis=-1).numpy()
    places = np.flatnonzero(side.labels != -100)
    return log_p[places, side.labels[places]]


def alone(model, side):
    """Their sum."""
    return tokens_alone(model, side).sum()


def objective(reference=None, size=1024, **changes):
    return PreferenceObjective(settings(**changes), reference, loss_subbatch_seqlen=size)


def reference_of(model):
    """The present numbers of a model for PAIRS."""
    table = {}
    for pair in PAIRS:
        batch = collate([(pair,)], pad_id=0)
        with paddle.no_grad():
            answers = answer_log_probabilities(model, batch, loss_subbatch_seqlen=64)
        table[batch.pairs[0].key] = (float(answers.chosen_P[0]), float(answers.rejected_P[0]))
    return CachedReference(table)


def shifted(model, by):
    """A reference that finds the answers of PAIRS more or less likely by so much."""
    exact = reference_of(model)
    return CachedReference(
        {key: (one - by[n][0], two - by[n][1]) for n, (key, (one, two)) in enumerate(exact._table.items())}
    )


@pytest.mark.parametrize("kind", ["dense", "experts", "two modalities"])
def test_shared_prompts_change_no_log_probability(kind, folder, tmp_path, kernels):
    """Every token within 1e-5 of that of a forward pass of its own, sums within 1e-6 of their size."""
    if kind != "dense":
        two = kind == "two modalities"
        numbers = tiny_moe_config(2, im_patch_id=4) if two else tiny_moe_config()
        folder = write_tiny_checkpoint(tmp_path / "moe", numbers)
    # Every second id is a vision token.
    even = VisionTokens(dict.fromkeys(range(0, 300, 2), 1)) if kind == "two modalities" else None
    batch = collate([tuple(PAIRS[:2]), tuple(PAIRS[2:])], pad_id=0, vision=even)
    assert (batch.token_types is not None) == (even is not None)
    sides = [side for pair in PAIRS for side in (pair.chosen(), pair.rejected())]
    places = np.flatnonzero(batch.labels.reshape(-1) != -100)
    model = build(folder)
    with paddle.no_grad():
        found = token_log_probabilities(model, batch, places, loss_subbatch_seqlen=4).numpy()
        answers = answer_log_probabilities(model, batch, loss_subbatch_seqlen=4)
        expected = [tokens_alone(model, side) for side in sides]
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=1e-5)
    sums = np.stack([answers.chosen_P.numpy(), answers.rejected_P.numpy()], axis=1).reshape(-1)
    np.testing.assert_allclose(sums, [tokens.sum() for tokens in expected], rtol=1e-6, atol=0)
    assert batch.num_tokens < 0.75 * sum(len(side) for side in sides)


def test_lengths():
    batch = collate([tuple(PAIRS)], pad_id=0)
    lengths = answer_lengths(batch)
    assert lengths.chosen_P.tolist() == [5, 12, 4, 1]
    assert lengths.rejected_P.tolist() == [7, 2, 4, 9]


def test_first_loss_is_ln_2_to_the_last_bit(model):
    """The reference was scored in the same batch, as `train/reference.py` does."""
    batch = collate([tuple(PAIRS[:2]), tuple(PAIRS[2:])], pad_id=0)
    scored = ModelReference(model, None, loss_subbatch_seqlen=1024)
    chosen, rejected = (x.numpy() for x in vars(scored.of(None, batch)).values())
    table = {p.key: (float(c), float(r)) for p, c, r in zip(batch.pairs, chosen, rejected, strict=True)}
    made = objective(CachedReference(table))
    made.expects_ln2 = True
    made.begin_step([batch])
    loss, metrics = made(model, batch, scale=1.0)
    assert float(loss) == np.float32(math.log(2.0))
    assert metrics["shares"]["rewards/margins"] == 0.0 == metrics["shares"]["kl"]
    assert not made.expects_ln2, "only the first pass of a run is looked at"


def test_a_reference_that_is_another_model_is_found(model):
    made = objective(shifted(model, [(1.0, -1.0)] * 4))
    made.expects_ln2 = True
    with pytest.raises(RunError, match="ln 2"):
        made(model, collate([tuple(PAIRS)], pad_id=0), scale=1.0)


def test_loss_by_hand(model):
    """a = 1, b = -2 for one pair, a = 0, b = 4 for another."""
    shifts = [(1.0, -2.0), (0.0, 4.0), (0.0, 0.0), (0.0, 0.0)]
    batch = collate([tuple(PAIRS[:2])], pad_id=0)
    made = objective(shifted(model, shifts), sft_loss_ratio=0.5, pref_loss_ratio=2.0)
    made.begin_step([batch])
    loss, metrics = made(model, batch, scale=1.0)
    nll = -(alone(model, PAIRS[0].chosen()) + alone(model, PAIRS[1].chosen())) / 17
    expected = [math.log1p(math.exp(-0.3)), math.log1p(math.exp(0.4))]
    assert float(loss) == pytest.approx(sum(expected) + 0.5 * nll, rel=1e-4)
    shares = metrics["shares"]
    assert shares["preference_loss"] == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert shares["sft_loss"] == pytest.approx(nll, rel=1e-4)
    assert shares["rewards/chosen"] == pytest.approx(0.05, abs=1e-4)
    assert shares["rewards/rejected"] == pytest.approx(0.1, abs=1e-4)
    assert shares["rewards/margins"] == pytest.approx(-0.05, abs=1e-4)
    assert shares["rewards/accuracies"] == 0.5
    assert shares["kl"] == pytest.approx((1 - 2 + 0 + 4) / 4, abs=1e-3)
    assert shares["lengths/chosen"] == 8.5
    likelier = [
        alone(model, pair.chosen()) / pair.chosen().num_trained
        > alone(model, pair.rejected()) / pair.rejected().num_trained
        for pair in PAIRS[:2]
    ]
    assert shares["logps/accuracies"] == sum(likelier) / 2
    assert shares["logps/chosen"] == pytest.approx(-nll * 8.5, rel=1e-4)


def train_gradients(folder, micro_batches, **changes):
    """Loss and gradients of a step over these micro-batches."""
    model = build(folder)
    loss = StepLoss(objective(shifted(model, [(0.5, -1.0), (0.0, 2.0), (1.0, 1.0), (-2.0, 0.0)]), **changes))
    batches = [collate(rows, pad_id=0) for rows in micro_batches]
    loss.begin(batches)
    for batch in batches:
        loss(model, batch).backward()
    found = {name: gradients.of(p).numpy() for name, p in model.named_parameters()}
    return loss.values(), found


@pytest.mark.parametrize(
    "changes", [{}, {"loss_type": "ipo", "sft_loss_ratio": 0.3}, {"normalize_logps": True}]
)
def test_no_split_changes_a_step(folder, changes):
    together, expected = train_gradients(folder, [[tuple(PAIRS[:2]), tuple(PAIRS[2:])]], **changes)
    apart, found = train_gradients(folder, [[(PAIRS[0],)], [tuple(PAIRS[1:3]), (PAIRS[3],)]], **changes)
    for name, value in together.items():
        assert apart[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    for name, gradient in expected.items():
        np.testing.assert_allclose(
            found[name], gradient, rtol=2e-3, atol=2e-5 * np.abs(gradient).max() + 1e-7
        )


def test_gradient_is_that_of_the_plain_formula(folder):
    """The same loss from full logits of separate forward passes, differentiated by Paddle."""
    _, found = train_gradients(folder, [[tuple(PAIRS)]])
    model = build(folder)
    reference = shifted(model, [(0.5, -1.0), (0.0, 2.0), (1.0, 1.0), (-2.0, 0.0)])._table
    total = paddle.zeros([])
    for pair in PAIRS:
        ratios = []
        for side, known in zip((pair.chosen(), pair.rejected()), reference[pair.key()], strict=True):
            batch = collate([(side,)], pad_id=0)
            inputs = [paddle.to_tensor(x) for x in (batch.input_ids, batch.position_ids, batch.attend_from)]
            places = np.flatnonzero(side.labels != -100)
            hidden = model(*inputs)[0][paddle.to_tensor(places)]
            logits = paddle.nn.functional.log_softmax(model.logits(hidden), axis=-1)
            picked = logits[paddle.arange(len(places)), paddle.to_tensor(side.labels[places].astype("int64"))]
            ratios.append(picked.sum() - known)
        total = total - paddle.nn.functional.log_sigmoid(0.1 * (ratios[0] - ratios[1])) / len(PAIRS)
    total.backward()
    for name, parameter in model.named_parameters():
        expected = gradients.of(parameter).numpy()
        np.testing.assert_allclose(
            found[name], expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max() + 1e-7
        )


def test_orpo_is_odds_ratio_with_likelihood(model):
    batch = collate([tuple(PAIRS)], pad_id=0)
    orpo, plain = objective(loss_type="orpo"), objective(loss_type="or", sft_loss_ratio=1.0)
    losses = []
    for made in (orpo, plain):
        made.begin_step([batch])
        losses.append(float(made(model, batch, scale=1.0)[0]))
    assert losses[0] == losses[1]


def test_scores_reach_the_loss(model):
    pair = random_pair(9, 5, 7, 1, score=3.0)
    reference = shifted(model, [(1.0, -2.0)] + [(0.0, 0.0)] * 3)
    made = objective(reference, offset_alpha=0.2)
    loss, _ = made(model, collate([(pair,)], pad_id=0))
    assert float(loss) == pytest.approx(math.log1p(math.exp(-0.3 + 0.2 * math.log(3))), rel=1e-4)


def test_evaluation(model):
    made = objective(shifted(model, [(1.0, -2.0), (0.0, 4.0), (0.0, 0.0), (2.0, 1.0)]), sft_loss_ratio=0.5)
    batches = [collate([tuple(PAIRS[:3])], pad_id=0), collate([(PAIRS[3],)], pad_id=0)]
    result = evaluate(model, batches, made)
    losses = [math.log1p(math.exp(-x)) for x in (0.3, -0.4, 0.0, 0.1)]
    nll = -sum(alone(model, pair.chosen()) for pair in PAIRS) / 22
    assert result.loss == pytest.approx(np.mean(losses) + 0.5 * nll, rel=1e-3)
    assert result.perplexity == pytest.approx(math.exp(nll), rel=1e-3)
    assert result.num_tokens == 22 + 22
    metrics = result.metrics()
    assert metrics["eval_rewards/margins"] == pytest.approx((0.3 - 0.4 + 0.1) / 4, abs=1e-4)
    assert metrics["eval_accuracy"] == metrics["eval_rewards/accuracies"]


def test_no_pair_to_evaluate(model):
    with pytest.raises(DataError):
        evaluate(model, [], objective(loss_type="simpo"))


@pytest.mark.parametrize(
    ("changes", "needs", "ln2"),
    [
        ({}, True, True),
        ({"loss_type": "hinge"}, True, False),
        ({"reference_free": True}, False, False),
        ({"loss_type": "simpo"}, False, False),
        ({"loss_type": "orpo"}, False, False),
        ({"label_smoothing": 0.1}, True, False),
        ({"offset_alpha": 0.1}, True, False),
    ],
)
def test_what_settings_mean(changes, needs, ln2):
    made = settings(**changes)
    assert (made.needs_reference, made.begins_at_ln2()) == (needs, ln2)
