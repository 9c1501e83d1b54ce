"""What a run of preference training tells people: its words, its table and its pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

from erniekit.train.figure import loss_figure

# Name in the log -> file of its picture and words.
_PICTURES = {
    "rewards/margins": ("margin.svg", "reward margin"),
    "rewards/accuracies": ("accuracy.svg", "preference accuracy"),
}


def is_of_preferences(row: Mapping[str, Any]) -> bool:
    """Whether a row of the log is of preference training, a step's or an evaluation's."""
    return "rewards/margins" in row or "eval_rewards/margins" in row


def evaluation_words(row: Mapping[str, Any]) -> str:
    """An evaluation in words."""
    return (
        f"held-out loss {row['eval_loss']:.4f}, preference accuracy {row['eval_accuracy']:.1%}, margin "
        f"{row['eval_rewards/margins']:+.4f}, perplexity of chosen answers {row['eval_perplexity']:.3f}"
    )


def step_words(row: Mapping[str, Any]) -> str:
    """What the live line adds for a step."""
    return f"accuracy {row['rewards/accuracies']:.0%} | margin {row['rewards/margins']:+.4f} | "


def evaluation_table(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """The held-out figures as lines of Markdown."""
    head = "| step | held-out loss | preference accuracy | reward margin | perplexity of chosen answers |"
    return [
        "\n" + head,
        "|---|---|---|---|---|",
        *(
            f"| {row['step']} | {row['eval_loss']:.4f} | {row['eval_accuracy']:.1%} "
            f"| {row['eval_rewards/margins']:.4f} | {row['eval_perplexity']:.3f} |"
            for row in evaluations
        ),
    ]


def pictures(
    steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """File -> words and SVG of margin and accuracy over the steps; none for other training."""
    if not steps or not is_of_preferences(steps[-1]):
        return {}
    return {
        file: (
            words,
            loss_figure(
                [(row["step"], row[name]) for row in steps],
                [(row["step"], row[f"eval_{name}"]) for row in evaluations],
                title=words,
                label=words,
            ),
        )
        for name, (file, words) in _PICTURES.items()
    }
