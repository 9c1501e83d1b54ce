"""Preference losses: what a model is to think of a better and a worse answer to one prompt.

Of each answer only the sum of the log-probabilities of its tokens matters, by the model that is
trained and, for most losses, by the reference model it began as. With

    a = pi_c - rho_c,   b = pi_r - rho_r,   d = a - b

(pi the policy, rho the reference, c the chosen and r the rejected answer, s the logistic function):

| loss_type | loss of a pair |
|---|---|
| sigmoid | -(1 - e) log s(beta d) - e log s(-beta d), d less (offset_alpha / beta) log(score difference) |
| hinge | max(0, 1 - beta d) |
| ipo | (d - 1 / (2 beta))^2, log-probabilities averaged over the tokens |
| simpo | as sigmoid of pi_c - pi_r - simpo_gamma / beta, averaged over the tokens, no reference |
| dpop | -log s(beta (d - dpop_lambda max(0, -a))) |
| kto_pair | half of 1 - s(beta (a - KL_r)) + 1 - s(beta (KL_c - b)); KL_c, KL_r = max(0, mean of a, of b) |
| sppo_hard | (a - 1 / (2 beta))^2 + (b + 1 / (2 beta))^2 |
| nca_pair | -log s(beta a) - log s(-beta a) / 2 - log s(-beta b) / 2 |
| or | -log s(log odds_c - log odds_r), odds = p / (1 - p), p = exp of the average, no reference |

Rafailov et al. 2023 (sigmoid), Zhao et al. 2023 (hinge), Azar et al. 2023 (ipo), Meng et al. 2024
(simpo), Pal et al. 2024 (dpop), Ethayarajh et al. 2024 (kto_pair), Wu et al. 2024 (sppo_hard), Chen
et al. 2024 (nca_pair), Hong et al. 2024 (or); offset: Amini et al. 2024.

    P pairs
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import paddle
import paddle.nn.functional as F

# Losses that know no reference model.
REFERENCE_FREE = ("simpo", "or")
# Losses of log-probabilities per token.
AVERAGED = ("ipo", "simpo", "or")


@dataclass(frozen=True)
class Answers:
    """Summed log-probabilities of the two answers of each pair, fp32 [P] each."""

    chosen_P: paddle.Tensor
    rejected_P: paddle.Tensor


@dataclass(frozen=True)
class Preferences:
    """What the losses of some pairs are, and what they make of the answers.

    Attributes:
        losses_P: one loss for each pair.
        chosen_rewards_P, rejected_rewards_P: beta times the log-ratios, the rewards that the policy implies
            (of ipo from the sums, although its loss takes averages).
    """

    losses_P: paddle.Tensor
    chosen_rewards_P: paddle.Tensor
    rejected_rewards_P: paddle.Tensor


@dataclass(frozen=True)
class _Terms:
    """What the formulas are written with, see the module docstring."""

    a: paddle.Tensor
    b: paddle.Tensor
    policy: Answers
    beta: float
    label_smoothing: float
    simpo_gamma: float
    dpop_lambda: float
    offset: paddle.Tensor | None

    @property
    def d(self) -> paddle.Tensor:
        return self.a - self.b


def preference_loss(
    policy: Answers,
    reference: Answers | None,
    lengths: Answers,
    *,
    loss_type: str,
    beta: float,
    label_smoothing: float,
    normalize_logps: bool,
    offset_alpha: float,
    simpo_gamma: float,
    dpop_lambda: float,
    score_differences_P: paddle.Tensor | None = None,
) -> Preferences:
    """The losses of pairs, differentiable to `policy`.

    Args:
        reference: None for losses without one, and for a reference that counts as uniform.
        lengths: number of tokens of each answer, fp32 [P].
        normalize_logps: scale both answers of a pair to their mean length, for losses that do not
            average over tokens: log-probability * mean length / length.
        score_differences_P: how much better the chosen answers are; `offset_alpha` needs them.
    """
    sums = _ratios(policy, reference)
    if loss_type in AVERAGED:
        policy, reference = _scaled(policy, lengths, None), _scaled_or_none(reference, lengths, None)
    elif normalize_logps:
        mean_P = (lengths.chosen_P + lengths.rejected_P) / 2.0
        policy, reference = _scaled(policy, lengths, mean_P), _scaled_or_none(reference, lengths, mean_P)
    a, b = _ratios(policy, None if loss_type in REFERENCE_FREE else reference)
    offset = None
    if offset_alpha:
        assert score_differences_P is not None, "offset_alpha without scores"
        offset = offset_alpha / beta * paddle.log(score_differences_P + 1e-6)
    terms = _Terms(a, b, policy, beta, label_smoothing, simpo_gamma, dpop_lambda, offset)
    chosen_P, rejected_P = sums if loss_type == "ipo" else (a, b)
    return Preferences(LOSSES[loss_type](terms), (beta * chosen_P).detach(), (beta * rejected_P).detach())


def _ratios(policy: Answers, reference: Answers | None) -> tuple[paddle.Tensor, paddle.Tensor]:
    """a and b; a reference that is not there counts as the same for both answers."""
    if reference is None:
        return policy.chosen_P, policy.rejected_P
    return policy.chosen_P - reference.chosen_P, policy.rejected_P - reference.rejected_P


def _scaled(answers: Answers, lengths: Answers, by_P: paddle.Tensor | None) -> Answers:
    """Log-probabilities per token, times `by_P`."""
    chosen_P, rejected_P = answers.chosen_P / lengths.chosen_P, answers.rejected_P / lengths.rejected_P
    return Answers(chosen_P, rejected_P) if by_P is None else Answers(chosen_P * by_P, rejected_P * by_P)


def _scaled_or_none(answers: Answers | None, lengths: Answers, by_P: paddle.Tensor | None) -> Answers | None:
    return None if answers is None else _scaled(answers, lengths, by_P)


def _smoothed(logits_P: paddle.Tensor, label_smoothing: float) -> paddle.Tensor:
    """Cross-entropy of "the chosen one is better", which is wrong with probability `label_smoothing`."""
    loss_P = -(1.0 - label_smoothing) * F.log_sigmoid(logits_P)
    return loss_P - label_smoothing * F.log_sigmoid(-logits_P) if label_smoothing else loss_P


def _sigmoid(t: _Terms) -> paddle.Tensor:
    d = t.d if t.offset is None else t.d - t.offset
    return _smoothed(t.beta * d, t.label_smoothing)


def _hinge(t: _Terms) -> paddle.Tensor:
    return F.relu(1.0 - t.beta * t.d)


def _ipo(t: _Terms) -> paddle.Tensor:
    return (t.d - 1.0 / (2.0 * t.beta)) ** 2


def _simpo(t: _Terms) -> paddle.Tensor:
    return _smoothed(t.beta * (t.d - t.simpo_gamma / t.beta), t.label_smoothing)


def _dpop(t: _Terms) -> paddle.Tensor:
    return -F.log_sigmoid(t.beta * (t.d - t.dpop_lambda * F.relu(-t.a)))


def _kto_pair(t: _Terms) -> paddle.Tensor:
    chosen_kl, rejected_kl = F.relu(t.a.mean()), F.relu(t.b.mean())
    chosen_P = 1.0 - F.sigmoid(t.beta * (t.a - rejected_kl))
    rejected_P = 1.0 - F.sigmoid(t.beta * (chosen_kl - t.b))
    return (chosen_P + rejected_P) / 2.0


def _sppo_hard(t: _Terms) -> paddle.Tensor:
    return (t.a - 0.5 / t.beta) ** 2 + (t.b + 0.5 / t.beta) ** 2


def _nca_pair(t: _Terms) -> paddle.Tensor:
    chosen, rejected = t.beta * t.a, t.beta * t.b
    return -F.log_sigmoid(chosen) - 0.5 * F.log_sigmoid(-chosen) - 0.5 * F.log_sigmoid(-rejected)


def _or(t: _Terms) -> paddle.Tensor:
    return -F.log_sigmoid(_log_odds(t.policy.chosen_P) - _log_odds(t.policy.rejected_P))


def _log_odds(log_p: paddle.Tensor) -> paddle.Tensor:
    """log(p / (1 - p)); for p near 1 through expm1, where 1 - p would lose its digits.

    A p that rounds to 1 counts as 1 - 1e-7.
    """
    log_p = paddle.clip(log_p, max=-1e-7)
    small = log_p < -math.log(2.0)
    # Both branches are evaluated, so each gets an argument that keeps its gradient finite.
    below = paddle.log1p(-paddle.exp(paddle.where(small, log_p, paddle.full_like(log_p, -1.0))))
    above = paddle.log(-paddle.expm1(paddle.where(small, paddle.full_like(log_p, -0.5), log_p)))
    return log_p - paddle.where(small, below, above)


LOSSES: dict[str, Callable[[_Terms], paddle.Tensor]] = {
    "sigmoid": _sigmoid,
    "hinge": _hinge,
    "ipo": _ipo,
    "simpo": _simpo,
    "dpop": _dpop,
    "kto_pair": _kto_pair,
    "sppo_hard": _sppo_hard,
    "nca_pair": _nca_pair,
    "or": _or,
}
