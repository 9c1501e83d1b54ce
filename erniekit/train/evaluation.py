"""Held-out evaluation: the figures, and the plan of when to take them and what they decide.

Loss is the mean negative log-likelihood over all trained tokens of the held-out set (nats per
token), perplexity its exponential, accuracy the share of trained tokens that greedy decoding
would get right. All three are token means, so they do not depend on the batch size.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from erniekit.errors import DataError
from erniekit.train.objectives import Objective
from erniekit.train.router_stats import RouterFigures
from erniekit.train.step_loss import Companion
from erniekit.train.team import ALONE, Team


@dataclass(frozen=True)
class EvaluationResult:
    """Figures of one pass over a held-out set."""

    loss: float
    perplexity: float
    accuracy: float
    num_tokens: int
    # Of models with experts, where they were watched.
    routers: tuple[RouterFigures, ...] = ()
    # What else an objective tells, by name.
    more: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The figures under the names that the logs use."""
        names = ("loss", "perplexity", "accuracy", "num_tokens")
        return {f"eval_{name}": getattr(self, name) for name in names} | {
            f"eval_{name}": value for name, value in self.more.items()
        }

    def in_words(self) -> str:
        """The figures for people."""
        return (
            f"held-out loss {self.loss:.4f}, perplexity {self.perplexity:.3f}, token accuracy "
            f"{self.accuracy:.1%} over {self.num_tokens} tokens"
        )


def evaluate(
    model: Any,
    batches: Iterable[Any],
    objective: Objective,
    companion: Companion | None = None,
    team: Team = ALONE,
) -> EvaluationResult:
    """Run `objective` over `batches` without gradients and dropout; leaves the model in its mode.

    Args:
        companion: looks at every forward pass; what it adds to a loss is left out.
        team: the processes that share the batches.

    Raises:
        DataError: no token of the held-out set is trained on, so there is no loss.
    """
    import paddle

    found = {"total_loss": 0.0, "num_tokens": 0.0, "num_correct": 0.0}
    sums: dict[str, float] = {}
    was_training = model.training
    model.eval()
    try:
        with paddle.no_grad():
            look = _one_by_one if team.pipeline is None else _through_stages
            for found_of, sums_of in look(model, batches, objective, companion, team):
                for name, value in found_of.items():
                    found[name] += value
                for name, value in sums_of.items():
                    sums[name] = sums.get(name, 0.0) + value
    finally:
        if was_training:
            model.train()
    found, sums = team.total(found), team.total(sums)
    num_tokens = int(found["num_tokens"])
    if num_tokens == 0:
        raise DataError("the held-out set has no token to predict: check eval_dataset_path and its `label`s")
    if sums:
        return objective.result(sums)  # type: ignore[attr-defined]
    loss = found["total_loss"] / num_tokens
    perplexity = math.exp(loss) if loss < 700 else math.inf
    return EvaluationResult(loss, perplexity, found["num_correct"] / num_tokens, num_tokens)


_Figures = tuple[dict[str, float], dict[str, float]]


def _figures(model: Any, batch: Any, objective: Objective) -> _Figures:
    """Plain numbers of a batch: those of every objective, and its own."""
    loss_sum, metrics = objective(model, batch)
    found = {name: float(metrics[name]) for name in ("num_tokens", "num_correct")}
    return {"total_loss": float(loss_sum)} | found, metrics.get("sums", {})


def _one_by_one(
    model: Any, batches: Iterable[Any], objective: Objective, companion: Companion | None, team: Team
) -> Iterator[_Figures]:
    """Of the batches that count for this process."""
    for turn in team.turns(batches):
        if companion is not None and turn.counts:
            companion.before_forward(model)
        found = _figures(model, turn.batch, objective)
        if not turn.counts:
            continue
        if companion is not None:
            companion.after_forward(model, turn.batch)
        yield found


def _through_stages(
    model: Any, batches: Iterable[Any], objective: Objective, companion: Companion | None, team: Team
) -> Iterator[_Figures]:
    """The same of a model in stages of a pipeline: the first rank tells what the last one found."""
    assert team.pipeline is not None
    turns = team.turns(batches)
    # As many at once as keep the pauses at the ends small, and what waits between stages few.
    while some := list(islice(turns, 8 * team.pipeline.group.size)):
        results = team.pipeline.forward(
            [turn.batch for turn in some],
            lambda view, batch: _figures(view, batch, objective),
            companion,
        )
        if team.pipeline.group.rank == 0:
            yield from (found for turn, found in zip(some, results, strict=True) if turn.counts)


class EvaluationPlan:
    """When to evaluate, which checkpoint is the best, and when to stop early."""

    def __init__(
        self,
        *,
        evaluation_strategy: str,
        eval_steps: int | None,
        max_evaluate_steps: int,
        load_best_model_at_end: bool,
        metric_for_best_model: str,
        greater_is_better: bool | None,
        early_stopping_patience: int | None,
        early_stopping_threshold: float,
    ) -> None:
        self.strategy = evaluation_strategy
        self.eval_steps = eval_steps
        self.max_batches = max_evaluate_steps if max_evaluate_steps > 0 else None
        self.keeps_best = load_best_model_at_end or early_stopping_patience is not None
        name = metric_for_best_model
        self.metric = name if name.startswith("eval_") else f"eval_{name}"
        self.greater = (
            greater_is_better if greater_is_better is not None else self.metric.endswith("accuracy")
        )
        self.patience = early_stopping_patience
        self.threshold = early_stopping_threshold
        self.best: float | None = None
        self.best_step: int | None = None
        self.num_without_gain = 0

    def is_due(self, step: int, *, steps_per_epoch: int, default_interval: int) -> bool:
        """Whether to evaluate after `step` optimizer steps."""
        if self.strategy == "no":
            return False
        interval = steps_per_epoch if self.strategy == "epoch" else self.eval_steps or default_interval
        return step % max(1, interval) == 0

    def observe(self, step: int, result: EvaluationResult) -> bool:
        """Take note of a result; True when it is the best so far."""
        value = result.metrics()[self.metric]
        gain = math.inf if self.best is None else (value - self.best) * (1 if self.greater else -1)
        self.num_without_gain = 0 if gain > self.threshold else self.num_without_gain + 1
        if gain <= 0:
            return False
        self.best, self.best_step = value, step
        return True

    def should_stop(self) -> bool:
        """Whether `early_stopping_patience` evaluations in a row brought no gain above the threshold."""
        return self.patience is not None and self.num_without_gain >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"best": self.best, "best_step": self.best_step, "num_without_gain": self.num_without_gain}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.best, self.best_step = state["best"], state["best_step"]
        self.num_without_gain = state["num_without_gain"]
