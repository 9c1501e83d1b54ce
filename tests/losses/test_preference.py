"""Preference losses against numbers worked by hand, and against TRL where it has them."""

import json
import math
from pathlib import Path

import numpy as np
import paddle
import pytest

from erniekit.losses.preference import LOSSES, Answers, preference_loss

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/preference.json").read_text(encoding="utf-8"))
PLAIN = {
    "beta": 0.1,
    "label_smoothing": 0.0,
    "normalize_logps": False,
    "offset_alpha": 0.0,
    "simpo_gamma": 0.5,
    "dpop_lambda": 50.0,
}


def answers(chosen, rejected):
    return Answers(paddle.to_tensor(chosen, "float32"), paddle.to_tensor(rejected, "float32"))


# One pair: pi = (-10, -14), rho = (-12, -13), lengths 4 and 2; so a = 2, b = -1, d = 3.
POLICY, REFERENCE, LENGTHS = answers([-10.0], [-14.0]), answers([-12.0], [-13.0]), answers([4.0], [2.0])


def one(loss_type, *, reference=REFERENCE, **changes):
    scores = changes.pop("scores", None)
    found = preference_loss(
        POLICY,
        reference,
        LENGTHS,
        loss_type=loss_type,
        **{**PLAIN, **changes},
        score_differences_P=None if scores is None else paddle.to_tensor([scores]),
    )
    return float(found.losses_P[0])


def minus_log_logistic(x):
    return math.log1p(math.exp(-x))


@pytest.mark.parametrize(
    ("loss_type", "changes", "expected"),
    [
        # -log s(0.3)
        ("sigmoid", {}, 0.5543552),
        # 0.9 * 0.5543552 + 0.1 * (0.5543552 + 0.3)
        ("sigmoid", {"label_smoothing": 0.1}, 0.5843552),
        # offset (0.2 / 0.1) log 3 = 2.1972; -log s(0.1 (3 - 2.1972))
        ("sigmoid", {"offset_alpha": 0.2, "scores": 3.0}, 0.6538138),
        # to the mean length 3: pi = (-7.5, -21), rho = (-9, -19.5), d = 3
        ("sigmoid", {"normalize_logps": True}, 0.5543552),
        # pi_c - pi_r = 4 where there is no reference
        ("sigmoid", {"reference": None}, 0.5130153),
        # 1 - 0.3
        ("hinge", {}, 0.7),
        ("hinge", {"beta": 0.5}, 0.0),
        # averages: a = 0.5, b = -0.5, d = 1; (1 - 5)^2
        ("ipo", {}, 16.0),
        # averages: -2.5 + 7 - 5 = -0.5; -log s(-0.05)
        ("simpo", {}, 0.7184596),
        # a > 0: as sigmoid
        ("dpop", {}, 0.5543552),
        # KL_c = 2, KL_r = 0: (1 - s(0.2) + 1 - s(0.3)) / 2
        ("kto_pair", {}, 0.4378621),
        # (2 - 5)^2 + (-1 + 5)^2
        ("sppo_hard", {}, 25.0),
        # -log s(0.2) - log s(-0.2) / 2 - log s(0.1) / 2
        ("nca_pair", {}, 1.3194066),
        # log odds: -2.5 - log(1 - e^-2.5) = -2.4143; -7 - log(1 - e^-7) = -6.9991; -log s(4.5848)
        ("or", {}, 0.0101548),
    ],
)
def test_by_hand(loss_type, changes, expected):
    assert one(loss_type, **changes) == pytest.approx(expected, rel=2e-6, abs=1e-7)


def test_dpop_punishes_a_chosen_answer_that_becomes_less_likely():
    """a = -2, b = 1: d = -3, less 50 * 2."""
    found = preference_loss(REFERENCE, POLICY, LENGTHS, loss_type="dpop", **PLAIN)
    assert float(found.losses_P[0]) == pytest.approx(minus_log_logistic(0.1 * (-3 - 100)))


def test_dpop_weighs_by_lambda():
    found = preference_loss(REFERENCE, POLICY, LENGTHS, loss_type="dpop", **{**PLAIN, "dpop_lambda": 0.5})
    assert float(found.losses_P[0]) == pytest.approx(minus_log_logistic(0.1 * (-3 - 1)))


def test_normalised_lengths():
    """a and b differ, so the scaling by 3/4 and 3/2 shows: a = 1.5, b = -1.5."""
    found = preference_loss(
        POLICY, REFERENCE, LENGTHS, loss_type="sppo_hard", **{**PLAIN, "normalize_logps": True}
    )
    assert float(found.losses_P[0]) == pytest.approx((1.5 - 5) ** 2 + (-1.5 + 5) ** 2)
    assert float(found.chosen_rewards_P[0]) == pytest.approx(0.15)
    assert float(found.rejected_rewards_P[0]) == pytest.approx(-0.15)


def test_rewards():
    found = preference_loss(POLICY, REFERENCE, LENGTHS, loss_type="sigmoid", **PLAIN)
    assert float(found.chosen_rewards_P[0]) == pytest.approx(0.2)
    assert float(found.rejected_rewards_P[0]) == pytest.approx(-0.1)


def test_policy_that_is_its_reference():
    """Exactly ln 2 in fp32, whatever the log-probabilities are."""
    same = answers([-123.456, -0.25], [-7.75, -1e4])
    lengths = answers([3.0, 1.0], [2.0, 9.0])
    for normalize_logps in (False, True):
        settings = {**PLAIN, "normalize_logps": normalize_logps}
        found = preference_loss(same, same, lengths, loss_type="sigmoid", **settings)
        assert (found.losses_P.numpy() == np.float32(math.log(2))).all()


@pytest.mark.parametrize("case", list(GOLDEN["cases"]))
def test_like_trl(case):
    expected = GOLDEN["cases"][case]
    sides = []
    for side in GOLDEN["policy"]:
        sides.append([paddle.to_tensor(tokens, "float32", stop_gradient=False) for tokens in side])
    policy = Answers(*(paddle.stack([tokens.sum() for tokens in side]) for side in sides))
    reference = answers(*([sum(tokens) for tokens in side] for side in GOLDEN["reference"]))
    lengths = answers(*([float(len(tokens)) for tokens in side] for side in GOLDEN["policy"]))
    settings = {**PLAIN, "beta": GOLDEN["beta"], "simpo_gamma": GOLDEN["simpo_gamma"]}
    settings["label_smoothing"] = 0.2 if case == "simpo_smoothed" else 0.0
    found = preference_loss(policy, reference, lengths, loss_type=case.removesuffix("_smoothed"), **settings)
    loss = found.losses_P.mean()
    assert float(loss) == pytest.approx(expected["loss"], rel=1e-5)
    loss.backward()
    for side, gradients in zip(sides, expected["gradients"], strict=True):
        for tokens, gradient in zip(side, gradients, strict=True):
            np.testing.assert_allclose(tokens.grad.numpy(), gradient, rtol=1e-4, atol=1e-7)
    if expected["metrics"]:
        rewards = found.chosen_rewards_P, found.rejected_rewards_P
        assert float(rewards[0].mean()) == pytest.approx(expected["metrics"]["rewards/chosen"], abs=1e-6)
        assert float(rewards[1].mean()) == pytest.approx(expected["metrics"]["rewards/rejected"], abs=1e-6)


def test_every_loss_is_tested():
    assert set(LOSSES) == {case.removesuffix("_smoothed") for case in GOLDEN["cases"]} | {"dpop", "kto_pair"}
    assert len(LOSSES) == 9


def test_certain_answers_keep_odds_and_gradients_finite():
    policy = Answers(*(paddle.to_tensor(x, stop_gradient=False) for x in ([0.0, -1e-9], [-50.0, -0.3])))
    found = preference_loss(policy, None, answers([1.0, 1.0], [1.0, 1.0]), loss_type="or", **PLAIN)
    found.losses_P.sum().backward()
    assert np.isfinite(found.losses_P.numpy()).all()
    assert (
        np.isfinite(policy.chosen_P.grad.numpy()).all() and np.isfinite(policy.rejected_P.grad.numpy()).all()
    )
