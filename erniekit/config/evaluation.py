"""Section `evaluation`: when a run is measured on held-out data, and what follows from it."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When a run is measured on held-out data, and what follows from it."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.evaluation:EvaluationPlan",)

    evaluation_strategy: str = setting(
        "no", "when to evaluate while training", choices=("no", "steps", "epoch"), verbs=_TRAIN
    )
    eval_steps: int | None = setting(
        None, "steps between evaluations; save_steps when left out", verbs=_TRAIN, at_least=1
    )
    max_evaluate_steps: int = setting(
        -1, "at most so many batches an evaluation; -1 means all", verbs=("train", "eval"), at_least=-1
    )
    load_best_model_at_end: bool = setting(
        False, "keep the best checkpoint, and let the output folder stand for it", verbs=_TRAIN
    )
    metric_for_best_model: str = setting(
        "eval_loss",
        "figure that decides which checkpoint is the best",
        choices=("eval_loss", "eval_perplexity", "eval_accuracy", "loss", "perplexity", "accuracy"),
        verbs=_TRAIN,
    )
    greater_is_better: bool | None = setting(
        None, "direction of the figure; known from its name when left out", verbs=_TRAIN
    )
    early_stopping_patience: int | None = setting(
        None, "stop after so many evaluations without a gain; never when left out", verbs=_TRAIN, at_least=1
    )
    early_stopping_threshold: float = setting(0.0, "a smaller gain does not count", verbs=_TRAIN, at_least=0)
