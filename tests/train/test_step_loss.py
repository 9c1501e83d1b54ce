"""The loss of a step, from objectives and companions made by hand."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from erniekit.train.step_loss import StepLoss, Term


def micro_batch(labels, lengths=None):
    labels = np.array([labels])
    width = labels.shape[1]
    is_token = np.arange(width) < (lengths or width)
    return SimpleNamespace(
        labels=labels, attend_from=np.zeros_like(labels), is_token=lambda: is_token[None], weights=labels
    )


def weight():
    made = paddle.to_tensor([2.0])
    made.stop_gradient = False
    return made


def objective(model, batch, *, scale=None, ahead_scales=()):
    """Loss of a position: label * w."""
    total = float(batch.labels[batch.labels != -100].sum())
    metrics = {"ahead_losses": [(model * total * 10).sum() * times for times in ahead_scales]}
    return (model * total).sum() * scale, metrics


class Rider:
    """A companion whose term is w^2 / micro-batches."""

    def __init__(self, term_weight):
        self.term_weight, self.seen = term_weight, []

    def begin_step(self, num_micro_batches):
        self.num = num_micro_batches
        self.seen.append("begin")

    def before_forward(self, model):
        self.seen.append("before")

    def after_forward(self, model, batch):
        self.seen.append("after")
        return [Term("square", (model * model).sum() / self.num, self.term_weight)]


BATCHES = [micro_batch([1, 3, -100, -100]), micro_batch([5, -100, -100, -100], lengths=2)]


def run(step_loss, batches=BATCHES):
    model = weight()
    step_loss.begin(batches)
    for batch in batches:
        step_loss(model, batch).backward()
    return step_loss.values(), float(model.grad)


def test_alone_it_is_the_mean_over_the_trained_tokens():
    step_loss = StepLoss(objective)
    values, gradient = run(step_loss)
    assert step_loss.num_tokens == 3
    assert values == {"loss": pytest.approx(2 * 9 / 3)}
    assert gradient == pytest.approx(9 / 3)


def test_a_companions_term_is_in_the_gradient_and_in_the_total():
    rider = Rider(0.5)
    values, gradient = run(StepLoss(objective, [rider]))
    assert values == {
        "loss": pytest.approx(6 + 0.5 * 4),
        "lm_loss": pytest.approx(6),
        "square": pytest.approx(4),
    }
    assert gradient == pytest.approx(3 + 0.5 * 4)
    assert rider.seen == ["begin", "before", "after", "before", "after"]


def test_a_term_without_weight_is_only_told():
    values, gradient = run(StepLoss(objective, [Rider(0.0)]))
    assert values["loss"] == values["lm_loss"] == pytest.approx(6) and values["square"] == pytest.approx(4)
    assert gradient == pytest.approx(3)


def test_balanced_over_all_positions():
    values, gradient = run(StepLoss(objective, token_balance_loss=True))
    # 6 positions are no padding
    assert gradient == pytest.approx(9 / 6)
    assert values == {
        "loss": pytest.approx(3),
        "token_balanced_loss": pytest.approx(3),
        "lm_loss": pytest.approx(6),
    }


def test_multi_token_prediction():
    values, gradient = run(StepLoss(objective, num_depths=2, multi_token_pred_lambda=0.5))
    # labels ahead: depth 1 has one position (the 3), depth 2 none; the sums of `objective` are its own
    ahead = (10 * 2 * 9 / 1 + 10 * 2 * 9 / 1) / 2
    assert values["mtp_loss"] == pytest.approx(ahead)
    assert values["loss"] == pytest.approx(6 + 0.5 * ahead) and values["lm_loss"] == pytest.approx(6)
    assert gradient == pytest.approx(3 + 0.5 * ahead / 2)
    without, _ = run(StepLoss(objective, num_depths=2, multi_token_pred_lambda=0.0))
    assert set(without) == {"loss"}


def test_a_step_begins_anew():
    step_loss = StepLoss(objective, [Rider(0.5)])
    first, _ = run(step_loss)
    second, _ = run(step_loss)
    assert first == second


def test_a_micro_batch_without_effect_has_a_gradient_of_zero_and_is_not_told():
    rider = Rider(0.5)
    step_loss = StepLoss(objective, [rider], 1, multi_token_pred_lambda=0.3)
    model = weight()
    step_loss.begin(BATCHES)
    step_loss.without_effect(model, BATCHES[0]).backward()
    assert float(model.grad) == 0.0 and rider.seen == ["begin"]
    with pytest.raises(KeyError):
        step_loss.values()


def test_of_a_part_only_companions_count():
    """Two stages: one has a rider and no objective, the other the objective; their sums are the step's."""
    rider, whole_rider = Rider(0.5), Rider(0.5)
    part, last, whole = StepLoss(objective, [rider]), StepLoss(objective), StepLoss(objective, [whole_rider])
    model = weight()
    part.begin(BATCHES)
    last.begin(BATCHES)
    for batch in BATCHES:
        output, loss = part.of_part(model, batch, lambda: "sent")
        assert output == "sent" and float(loss) == 0.5 * 4 / 2
        loss.backward()
        last(model, batch).backward()
    assert rider.seen == ["begin", *["before", "after"] * 2]
    gradient = float(model.grad)
    expected, whole_gradient = run(whole)
    assert gradient == pytest.approx(whole_gradient)

    def total(sums):
        other = {name: sum(map(float, shares)) for name, shares in last._shares.items()}
        return {name: sums.get(name, 0.0) + other.get(name, 0.0) for name in {**sums, **other}}

    assert part.values(total) == pytest.approx(expected)
    assert StepLoss(objective).of_part(model, BATCHES[0], lambda: 3) == (3, None)
