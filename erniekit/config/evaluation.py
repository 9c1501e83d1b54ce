"""When held-out figures are taken while training, and what they decide."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


def _batches(batches: int) -> str | None:
    """Why a number of batches is none."""
    return None if batches == -1 or batches >= 1 else "write -1 to take all, or at least 1"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When held-out figures are taken while training, and what they decide."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.evaluation:EvaluationPlan",)

    evaluation_strategy: str = key("no", "when to evaluate", choices=("no", "steps", "epoch"))
    eval_steps: int | None = key(None, "steps between evaluations; save_steps when not given", minimum=1)
    max_evaluate_steps: int = key(
        -1,
        "batches of an evaluation at most; -1 takes all",
        check=_batches,
        pattern_help="-1 or at least 1",
    )
    load_best_model_at_end: bool = key(False, "keep the best checkpoint and use it for export and chat")
    metric_for_best_model: str = key(
        "eval_loss",
        "the figure that says which checkpoint is best",
        choices=("eval_loss", "eval_perplexity", "eval_accuracy"),
        synonyms={"loss": "eval_loss", "perplexity": "eval_perplexity", "accuracy": "eval_accuracy"},
    )
    greater_is_better: bool | None = key(None, "direction of the metric; follows from it when not given")
    early_stopping_patience: int | None = key(
        None, "stop after so many evaluations without a gain", minimum=1
    )
    early_stopping_threshold: float = key(
        0.0, "gains up to this do not count for early stopping", minimum=0.0
    )
