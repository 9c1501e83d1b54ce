import math
from types import SimpleNamespace

import paddle
import pytest

from erniekit.errors import DataError
from erniekit.train.evaluation import EvaluationPlan, EvaluationResult, evaluate


def plan(**changes):
    fields = dict(
        evaluation_strategy="steps",
        eval_steps=5,
        max_evaluate_steps=-1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=None,
        early_stopping_patience=None,
        early_stopping_threshold=0.0,
    )
    return EvaluationPlan(**{**fields, **changes})


def result(loss, accuracy=0.5):
    return EvaluationResult(loss, math.exp(loss), accuracy, 10)


def test_figures_are_token_means_and_not_batch_means():
    model = SimpleNamespace(training=True, modes=[])
    model.eval = lambda: model.modes.append("eval")
    model.train = lambda: model.modes.append("train")
    sums = {"a": (2.0, 1, 1), "b": (2.0, 3, 0)}

    def objective(_, batch):
        loss, tokens, correct = sums[batch]
        return paddle.to_tensor(loss), {"num_tokens": tokens, "num_correct": correct}

    figures = evaluate(model, ["a", "b"], objective)
    assert figures.loss == pytest.approx(1.0)  # 4 nats over 4 tokens; the mean of the batches would be 1.33
    assert figures.perplexity == pytest.approx(math.e)
    assert figures.accuracy == 0.25
    assert figures.num_tokens == 4
    assert model.modes == ["eval", "train"]


def test_a_set_without_trained_tokens_is_an_error():
    model = SimpleNamespace(training=False, eval=lambda: None)
    with pytest.raises(DataError, match="no token to predict"):
        evaluate(model, [], lambda *_: None)


@pytest.mark.parametrize(
    ("changes", "due"),
    [
        ({}, [5, 10]),
        ({"evaluation_strategy": "epoch"}, [4, 8, 12]),
        ({"evaluation_strategy": "no"}, []),
        ({"eval_steps": None}, [3, 6, 9, 12]),
    ],
)
def test_when_it_is_due(changes, due):
    chosen = plan(**changes)
    assert [s for s in range(1, 13) if chosen.is_due(s, steps_per_epoch=4, default_interval=3)] == due


def test_best_is_kept_and_patience_ends_the_run():
    chosen = plan(early_stopping_patience=2, early_stopping_threshold=0.1)
    assert chosen.observe(1, result(3.0))
    assert chosen.observe(2, result(2.95))  # better, but by less than the threshold
    assert chosen.num_without_gain == 1
    assert chosen.observe(3, result(2.5)) and chosen.num_without_gain == 0
    assert not chosen.observe(4, result(2.6))
    assert not chosen.should_stop()
    assert not chosen.observe(5, result(2.7))
    assert chosen.should_stop()
    assert (chosen.best, chosen.best_step) == (2.5, 3)


def test_state_goes_on_where_it_was():
    first, second = plan(early_stopping_patience=2), plan(early_stopping_patience=2)
    first.observe(1, result(1.0))
    first.observe(2, result(2.0))
    second.load_state_dict(first.state_dict())
    assert not second.observe(3, result(1.5))
    assert second.should_stop()


def test_accuracy_is_better_when_greater():
    chosen = plan(metric_for_best_model="accuracy")
    assert chosen.observe(1, result(1.0, 0.2))
    assert chosen.observe(2, result(2.0, 0.3))
    assert not chosen.observe(3, result(0.5, 0.1))
