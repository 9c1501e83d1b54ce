"""Preference training: the objective of stage DPO.

A pair's prompt, chosen and rejected answer are one sequence (`data/pairs.py`); one forward pass gives
the log-probabilities of both answers, and those of the reference model come from `train/reference.py`.
The loss of a step is

    pref_loss_ratio * mean over pairs of the preference loss
        + sft_loss_ratio * mean over tokens of the chosen answers' negative log-likelihood,

both means over the whole global batch, so that no split into micro-batches changes a gradient. (Of
kto_pair the KL terms are means over the pairs of a micro-batch.)

    B rows, T columns, H hidden size, N labelled positions, P pairs
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle

from erniekit.data.sample import IGNORED
from erniekit.errors import DataError, RunError
from erniekit.losses.cross_entropy import Columns
from erniekit.losses.preference import REFERENCE_FREE, Answers, Preferences, preference_loss
from erniekit.train.evaluation import EvaluationResult
from erniekit.train.objectives import inputs_of

LN2 = math.log(2.0)
# How far the first loss may be from ln 2: rounding of a reference that was computed in other batches.
_FIRST_LOSS = 0.02
# Sums over pairs that a forward pass hands on; what is reported is their mean.
_REPORTED = (
    *("rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "logps/accuracies", "lengths/chosen", "lengths/rejected", "kl"),
)


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings:
    """The keys of preference training, see `config/preference.py`."""

    loss_type: str
    beta: float
    label_smoothing: float
    normalize_logps: bool
    offset_alpha: float
    simpo_gamma: float
    dpop_lambda: float
    pref_loss_ratio: float
    sft_loss_ratio: float
    reference_free: bool
    ref_logps: str
    ref_model_update_steps: int

    @property
    def loss(self) -> str:
        """The row of `losses/preference.py`."""
        return "or" if self.loss_type == "orpo" else self.loss_type

    @property
    def sft_ratio(self) -> float:
        """Weight of the likelihood of the chosen answers; ORPO has it always."""
        return self.sft_loss_ratio or (1.0 if self.loss_type == "orpo" else 0.0)

    @property
    def needs_reference(self) -> bool:
        """Whether a reference model takes part."""
        return not self.reference_free and self.loss not in REFERENCE_FREE

    def begins_at_ln2(self) -> bool:
        """Whether the loss of a model that is its own reference is ln 2 (dropout aside)."""
        same = self.loss in ("sigmoid", "dpop") and self.needs_reference and not self.offset_alpha
        return same and self.label_smoothing == 0.0


class Reference(Protocol):
    """Gives the reference's summed log-probabilities of the answers of a batch, fp32 [P] each."""

    def of(self, model: Any, batch: Any) -> Answers: ...


def answer_log_probabilities(model: Any, batch: Any, *, loss_subbatch_seqlen: int) -> Answers:
    """Summed log-probabilities of the answers of a batch's pairs, also where processes share the columns."""
    columns, count = model.head().columns, 2 * len(batch.pairs)
    places, segments = _labelled(batch, columns)
    log_p_N = token_log_probabilities(model, batch, places, loss_subbatch_seqlen=loss_subbatch_seqlen)
    # One more, of the last answer, so that there are as many sums as answers.
    log_p_N = paddle.concat([log_p_N, paddle.zeros([1])])
    sums = paddle.geometric.segment_sum(log_p_N, paddle.to_tensor([*segments, count - 1]))
    sums = columns.total(sums.reshape([-1, 2]))
    return Answers(sums[:, 0], sums[:, 1])


def token_log_probabilities(
    model: Any, batch: Any, places_N: np.ndarray, *, loss_subbatch_seqlen: int
) -> paddle.Tensor:
    """Log-probabilities of the labels at flat positions of the columns that are here, fp32 [N]."""
    head = model.head()
    hidden_BTH = model(**inputs_of(batch))
    hidden_NH = paddle.gather(hidden_BTH.reshape([-1, hidden_BTH.shape[-1]]), paddle.to_tensor(places_N))
    labels_N = paddle.to_tensor(head.columns.own(batch.labels).reshape(-1)[places_N])
    return head.log_probabilities(hidden_NH, labels_N, chunk_tokens=loss_subbatch_seqlen)


def answer_lengths(batch: Any) -> Answers:
    """Number of labelled tokens of the answers of a batch's pairs."""
    counts = np.array(
        [
            [_count(batch, place.row, place.chosen_start, place.rejected_start) for place in batch.pairs],
            [_count(batch, place.row, place.rejected_start, place.stop) for place in batch.pairs],
        ],
        dtype=np.float32,
    )
    return Answers(paddle.to_tensor(counts[0]), paddle.to_tensor(counts[1]))


def _count(batch: Any, row: int, start: int, stop: int) -> int:
    return int((batch.labels[row, start:stop] != IGNORED).sum())


def _labelled(batch: Any, columns: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Flat positions with a label in order, and the answer (2 * pair, + 1 for rejected) each belongs to."""
    answers = np.full(batch.labels.shape, -1, dtype=np.int64)
    for number, place in enumerate(batch.pairs):
        answers[place.row, place.chosen_start : place.rejected_start] = 2 * number
        answers[place.row, place.rejected_start : place.stop] = 2 * number + 1
    places = np.flatnonzero(columns.own(batch.labels).reshape(-1) != IGNORED)
    segments = columns.own(answers).reshape(-1)[places]
    assert (segments >= 0).all(), "a label outside the pairs"
    if not len(places):
        # Something without a label adds 0 to the first answer, and all processes meet in the backward pass.
        return np.zeros(1, np.int64), np.zeros(1, np.int64)
    return places, segments


class PreferenceObjective:
    """See the module docstring; an objective of `train/objectives.py` that knows its global batch."""

    def __init__(
        self, settings: PreferenceSettings, reference: Reference | None, *, loss_subbatch_seqlen: int
    ) -> None:
        assert (reference is not None) == settings.needs_reference, "a reference where it is needed"
        self.settings, self.reference = settings, reference
        self._loss_subbatch_seqlen = loss_subbatch_seqlen
        self._num_pairs = self._num_chosen = 1
        # Set for a run that begins with a model which is its reference, without dropout.
        self.expects_ln2 = False

    def begin_step(self, batches: Sequence[Any]) -> None:
        """Count what the means of a step are over."""
        self._num_pairs = max(1, sum(len(batch.pairs) for batch in batches))
        self._num_chosen = max(1, int(sum(float(answer_lengths(b).chosen_P.sum()) for b in batches)))

    def __call__(
        self, model: Any, batch: Any, *, scale: float | None = None, ahead_scales: Sequence[float] = ()
    ) -> tuple[paddle.Tensor, dict[str, Any]]:
        """The share of a micro-batch; without `scale` sums instead of means. Other scales are not used.

        Returns:
            The loss and `num_tokens`, `num_correct` (pairs whose chosen answer has the higher reward),
            `shares` (what is reported of a step) and `sums`.
        """
        settings, lengths = self.settings, answer_lengths(batch)
        policy = answer_log_probabilities(model, batch, loss_subbatch_seqlen=self._loss_subbatch_seqlen)
        reference = None if self.reference is None else self.reference.of(model, batch)
        found = preference_loss(
            policy,
            reference,
            lengths,
            loss_type=settings.loss,
            beta=settings.beta,
            label_smoothing=settings.label_smoothing,
            normalize_logps=settings.normalize_logps,
            offset_alpha=settings.offset_alpha,
            simpo_gamma=settings.simpo_gamma,
            dpop_lambda=settings.dpop_lambda,
            score_differences_P=paddle.to_tensor(
                [place.score_difference for place in batch.pairs], "float32"
            ),
        )
        if self.expects_ln2:
            self._check_first(found)
        num_pairs, num_chosen = (1, 1) if scale is None else (self._num_pairs, self._num_chosen)
        # Processes that share columns compute the same from here on: each counts for its share.
        share = model.head().columns.share
        loss = found.losses_P.sum() * (share * settings.pref_loss_ratio / num_pairs)
        if settings.sft_ratio:
            loss = loss - policy.chosen_P.sum() * (share * settings.sft_ratio / num_chosen)
        sums = {name: share * total for name, total in _sums(found, policy, reference, lengths).items()}
        shares = {name: sums[name] / num_pairs for name in ("preference_loss", *_REPORTED) if name in sums}
        if settings.sft_ratio:
            shares["sft_loss"] = sums["chosen_nll"] / num_chosen
        return loss, {
            "num_tokens": sums["chosen_tokens"] + sums["rejected_tokens"],
            "num_correct": sums["rewards/accuracies"],
            "shares": shares,
            "sums": sums,
        }

    def result(self, sums: dict[str, float]) -> EvaluationResult:
        """The figures of a held-out set from the summed `sums` of its batches.

        The loss is that of training, the perplexity that of the chosen answers, the accuracy the share of
        pairs whose chosen answer has the higher reward.
        """
        pairs, tokens = sums.get("num_pairs", 0.0), sums.get("chosen_tokens", 0.0)
        if not pairs:
            raise DataError("the held-out set has no pair: check eval_dataset_path")
        nll = sums["chosen_nll"] / tokens
        settings = self.settings
        loss = settings.pref_loss_ratio * sums["preference_loss"] / pairs + settings.sft_ratio * nll
        means = {name: sums[name] / pairs for name in _REPORTED if name in sums}
        return EvaluationResult(
            loss,
            math.exp(nll) if nll < 700 else math.inf,
            means["rewards/accuracies"],
            int(tokens + sums["rejected_tokens"]),
            more=means,
        )

    def _check_first(self, found: Preferences) -> None:
        """A model that is its own reference has the loss ln 2 for every pair."""
        self.expects_ln2 = False
        worst = float((found.losses_P - LN2).abs().max())
        if not worst <= _FIRST_LOSS:
            raise RunError(
                f"the first loss of a pair is {worst:.3g} away from ln 2, so the log-probabilities of the "
                "reference are not those of the model that is trained; remove reference_logps.json from "
                "output_dir, or write ref_logps: model"
            )


def _sums(
    found: Preferences, policy: Answers, reference: Answers | None, lengths: Answers
) -> dict[str, float]:
    """Sums over the pairs of a batch, under the names that TRL's users know."""
    chosen_P, rejected_P = found.chosen_rewards_P.numpy(), found.rejected_rewards_P.numpy()
    per_token = (
        policy.chosen_P.numpy() / lengths.chosen_P.numpy(),
        policy.rejected_P.numpy() / lengths.rejected_P.numpy(),
    )
    sums = {
        "num_pairs": float(len(chosen_P)),
        "preference_loss": float(found.losses_P.sum()),
        "chosen_nll": -float(policy.chosen_P.sum()),
        "chosen_tokens": float(lengths.chosen_P.sum()),
        "rejected_tokens": float(lengths.rejected_P.sum()),
        "rewards/chosen": float(chosen_P.sum()),
        "rewards/rejected": float(rejected_P.sum()),
        "rewards/accuracies": float((chosen_P > rejected_P).sum()),
        "rewards/margins": float((chosen_P - rejected_P).sum()),
        "logps/chosen": float(policy.chosen_P.sum()),
        "logps/rejected": float(policy.rejected_P.sum()),
        "logps/accuracies": float((per_token[0] > per_token[1]).sum()),
        "lengths/chosen": float(lengths.chosen_P.sum()),
        "lengths/rejected": float(lengths.rejected_P.sum()),
    }
    if reference is not None:
        # log pi - log rho, on average over answers that neither model wrote: an estimate of their distance.
        ratios = (policy.chosen_P - reference.chosen_P) + (policy.rejected_P - reference.rejected_P)
        sums["kl"] = float(ratios.sum()) / 2.0
    return sums
