"""The losses of a router against numbers worked by hand, and their gradients."""

import math

import numpy as np
import paddle
import pytest

from erniekit.losses.router import load_balance_loss, orthogonal_gradient, orthogonal_loss, router_z_loss


def tensor(values, *, grad=False):
    made = paddle.to_tensor(np.asarray(values, dtype=np.float32))
    made.stop_gradient = not grad
    return made


def test_load_balance_by_hand():
    probabilities = tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], grad=True)
    loss = load_balance_loss(probabilities, top_k=1)
    # both choose expert 0: load (1, 0, 0), mean probability of expert 0 is 0.6
    assert float(loss) == pytest.approx(3 * 0.6, rel=1e-6)
    loss.backward()
    # d/dp = E * load / S: only through the probabilities
    assert probabilities.grad.numpy() == pytest.approx(np.array([[1.5, 0, 0], [1.5, 0, 0]]), abs=1e-6)


def test_load_balance_of_two_experts_a_token_by_hand():
    loss = load_balance_loss(tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]]), top_k=2)
    # loads (1/2, 1, 1/2), means (0.3, 0.3, 0.4)
    assert float(loss) == pytest.approx(3 * (0.15 + 0.3 + 0.2), rel=1e-6)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_an_even_load_gives_top_k(top_k):
    num_experts = 8
    rows = [np.roll(np.where(np.arange(num_experts) < top_k, 1.0 / top_k, 0), s) for s in range(num_experts)]
    assert float(load_balance_loss(tensor(rows), top_k=top_k)) == pytest.approx(top_k, rel=1e-6)


def test_padding_does_not_count():
    rows = [[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]]
    masked = load_balance_loss(tensor(rows), top_k=1, counted_N=tensor([1, 0, 1]))
    # loads (1, 0), mean of expert 0 is 0.65
    assert float(masked) == pytest.approx(2 * 0.65, rel=1e-6)
    nothing = load_balance_loss(tensor(rows), top_k=1, counted_N=tensor([0, 0, 0]))
    assert float(nothing) == 0.0


def test_sigmoid_scores_are_made_probabilities():
    loss = load_balance_loss(tensor([[0.8, 0.4, 0.4]]), top_k=1, normalise=True)
    assert float(loss) == pytest.approx(3 * 0.5, rel=1e-6)


def test_grouped_experts_choose_one_each_and_divide_by_k():
    # two groups of two, each a softmax of its own; the second group's best is below the first's worst
    loss = load_balance_loss(tensor([[0.45, 0.55, 0.9, 0.1], [0.4, 0.6, 0.3, 0.7]]), top_k=2, grouped=True)
    # loads (0, 1, 1/2, 1/2), means (.425, .575, .6, .4)
    assert float(loss) == pytest.approx(4 * (0.575 + 0.3 + 0.2) / 2, rel=1e-6)


def test_the_ranks_average_makes_it_the_loss_of_all_tokens():
    halves = [[[0.7, 0.3], [0.6, 0.4]], [[0.1, 0.9], [0.4, 0.6]]]
    whole = load_balance_loss(tensor(halves[0] + halves[1]), top_k=1)
    seen: list[list[paddle.Tensor]] = []
    for half in halves:
        kept: list[paddle.Tensor] = []
        load_balance_loss(tensor(half), top_k=1, average=lambda x, kept=kept: kept.append(x) or x)
        seen.append(kept)
    answers = [(first + second) / 2 for first, second in zip(*seen, strict=True)]
    assert len(answers) == 2
    for half in halves:
        queue = list(answers)
        loss = load_balance_loss(tensor(half), top_k=1, average=lambda x, queue=queue: queue.pop(0))
        assert float(loss) == pytest.approx(float(whole), rel=1e-6)
    # alone each half is fully one-sided: 2 * .65 and 2 * .75
    assert float(load_balance_loss(tensor(halves[0]), top_k=1)) == pytest.approx(1.3, rel=1e-6)


def test_z_loss_by_hand():
    logits = tensor([[0.0, 0.0], [math.log(3.0), 0.0]], grad=True)
    loss = router_z_loss(logits)
    assert float(loss) == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2) / 2, rel=1e-6)
    loss.backward()
    # d/dz = 2 lse softmax / N
    expected = [[math.log(2) * 0.5] * 2, [math.log(4) * 0.75, math.log(4) * 0.25]]
    assert logits.grad.numpy() == pytest.approx(np.array(expected), rel=1e-5)
    assert float(router_z_loss(logits, counted_N=tensor([0, 1]))) == pytest.approx(math.log(4) ** 2, rel=1e-6)
    assert float(router_z_loss(logits, counted_N=tensor([0, 0]))) == 0.0


def test_orthogonal_loss_by_hand():
    # unit columns (1, 0) and (0.6, 0.8): their product is 0.6, twice in the Gram matrix
    weight = tensor([[2.0, 3.0], [0.0, 4.0]])
    assert float(orthogonal_loss(weight)) == pytest.approx(2 * 0.36 / 4, rel=1e-6)
    assert float(orthogonal_loss(tensor(np.eye(3) * 7))) == pytest.approx(0, abs=1e-12)
    # all the same direction: E^2 - E ones of E^2
    assert float(orthogonal_loss(tensor(np.ones([5, 4])))) == pytest.approx(12 / 16, rel=1e-5)


def test_orthogonal_gradient_by_hand():
    gradient = orthogonal_gradient(tensor([[2.0, 3.0], [0.0, 4.0]])).numpy()
    # L = c^2 / 2 with c = u1.u2 = 0.6: dL/dw1 = c (u2 - c u1) / 2 = 0.6 (0, .8) / 2
    assert gradient[:, 0] == pytest.approx([0.0, 0.24], abs=1e-6)
    # dL/dw2 = c (u1 - c u2) / 5 = 0.6 (.64, -.48) / 5
    assert gradient[:, 1] == pytest.approx([0.0768, -0.0576], abs=1e-6)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_orthogonal_gradient_is_that_of_autograd(groups):
    weight = tensor(np.random.default_rng(0).normal(size=(6, 8)), grad=True)
    orthogonal_loss(weight, groups=groups).backward()
    assert orthogonal_gradient(weight, groups=groups).numpy() == pytest.approx(weight.grad.numpy(), abs=1e-6)
    # and a step along it lowers the loss
    moved = weight.detach() - 0.5 * orthogonal_gradient(weight, groups=groups)
    assert float(orthogonal_loss(moved, groups=groups)) < float(orthogonal_loss(weight, groups=groups))


def test_grouped_orthogonal_loss_looks_within_groups_only():
    column = np.array([1.0, 2.0, 3.0])
    other = np.array([3.0, 0.0, -1.0])  # at a right angle to the first
    weight = tensor(np.stack([column, other, column, other], axis=1))
    assert float(orthogonal_loss(weight, groups=2)) == pytest.approx(0, abs=1e-12)
    assert float(orthogonal_loss(weight)) == pytest.approx(4 / 16, rel=1e-5)


def test_a_column_of_zeros_is_no_nan():
    weight = tensor(np.zeros([3, 2]), grad=True)
    # Gram matrix 0: (0 - I)^2 has E ones
    assert float(orthogonal_loss(weight)) == pytest.approx(2 / 4)
    assert np.isfinite(orthogonal_gradient(weight).numpy()).all()
