"""Words, table and pictures of preference training."""

from erniekit.train.preference_figures import (
    evaluation_table,
    evaluation_words,
    is_of_preferences,
    pictures,
    step_words,
)

EVALUATION = {
    "step": 3,
    "eval_loss": 0.5,
    "eval_accuracy": 0.75,
    "eval_perplexity": 3.25,
    "eval_rewards/margins": 0.125,
    "eval_rewards/accuracies": 0.75,
}
STEP = {"step": 2, "loss": 0.6, "rewards/margins": -0.5, "rewards/accuracies": 0.5}


def test_words():
    words = evaluation_words(EVALUATION)
    assert "loss 0.5000" in words and "accuracy 75.0%" in words and "margin +0.1250" in words
    assert step_words(STEP) == "accuracy 50% | margin -0.5000 | "


def test_table():
    assert evaluation_table([EVALUATION])[-1] == "| 3 | 0.5000 | 75.0% | 0.1250 | 3.250 |"


def test_pictures_of_preference_training_only():
    assert is_of_preferences(STEP) and is_of_preferences(EVALUATION)
    assert not is_of_preferences({"step": 1, "loss": 1.0})
    assert pictures([{"step": 1, "loss": 1.0}], []) == {} == pictures([], [])
    made = pictures([STEP], [EVALUATION])
    assert set(made) == {"margin.svg", "accuracy.svg"}
    words, svg = made["margin.svg"]
    assert words == "reward margin" and svg.startswith("<svg") and ">reward margin</text>" in svg
