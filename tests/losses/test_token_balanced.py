"""The token-balanced loss by hand."""

import paddle
import pytest

from erniekit.losses.token_balanced import token_balanced_loss


def test_masked_positions_are_in_the_denominator():
    losses = paddle.to_tensor([1.0, 3.0, 2.0], stop_gradient=False)
    loss = token_balanced_loss(losses.sum(), 3, 5)
    assert float(loss) == pytest.approx(6.0 / 8)  # the plain mean is 2
    loss.backward()
    assert losses.grad.tolist() == pytest.approx([1 / 8] * 3)


def test_a_step_of_nothing():
    assert float(token_balanced_loss(paddle.zeros([]), 0, 0)) == 0.0
