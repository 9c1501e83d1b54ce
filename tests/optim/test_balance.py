"""The correction bias moves against the load, by hand."""

import numpy as np
import paddle
import pytest

from erniekit.optim.balance import balance_bias


def bias(values):
    zero = paddle.nn.initializer.Constant(0.0)
    made = paddle.create_parameter(np.shape(values), "float32", default_initializer=zero)
    made.set_value(paddle.to_tensor(np.asarray(values, np.float32)))
    made.stop_gradient = True
    return made


def test_by_hand():
    found = bias([[0.0, 0.5, -0.5, 0.25], [1.0, 2.0, 3.0, 4.0]])
    # mean 3: below, at, above, above
    balance_bias(found, 0, paddle.to_tensor([0, 3, 4, 5]), rate=0.125)
    assert found.tolist() == [[0.125, 0.5, -0.625, 0.125], [1.0, 2.0, 3.0, 4.0]]
    assert found.stop_gradient
    balance_bias(found, 1, paddle.to_tensor([7, 7, 7, 7]), rate=0.125)
    assert found.tolist()[1] == [1.0, 2.0, 3.0, 4.0]


def test_a_modality_with_fewer_experts_moves_its_own():
    found = bias([[0.0] * 3, [0.0] * 3])
    balance_bias(found, 1, paddle.to_tensor([2, 0]), rate=1.0)
    assert found.tolist() == [[0.0] * 3, [-1.0, 1.0, 0.0]]


def test_usage_of_all_ranks_decides():
    found = bias([[0.0, 0.0]])
    balance_bias(
        found, 0, paddle.to_tensor([4, 2]), rate=1.0, total=lambda own: own + paddle.to_tensor([0.0, 6.0])
    )
    assert found.tolist() == [[1.0, -1.0]]


def test_usage_beyond_what_fp32_counts():
    found = bias([[0.0, 0.0]])
    balance_bias(found, 0, paddle.to_tensor([2**24, 2**24 + 1]), rate=1.0)
    assert found.tolist() == [[1.0, -1.0]]


def test_it_evens_out_a_router_that_prefers_an_expert():
    rng = np.random.default_rng(0)
    scores = rng.dirichlet([1.0] * 4, size=512) + np.array([0.3, 0.0, 0.0, -0.1])
    held = bias([[0.0] * 4])

    def load():
        return np.bincount((scores + held.numpy()[0]).argmax(-1), minlength=4)

    before = load().max() / load().mean()
    for _ in range(200):
        balance_bias(held, 0, paddle.to_tensor(load()), rate=0.005)
    assert before > 1.7 and load().max() / load().mean() == pytest.approx(1.0, abs=0.1)
