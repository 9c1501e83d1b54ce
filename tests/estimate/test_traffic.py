"""Bytes sent, worked by hand: hidden 32, 2 key heads of 16, 10 tokens of 4 bytes."""

import pytest

from erniekit.estimate.shares import Spread
from erniekit.estimate.traffic import all_reduce, gather, gradient_traffic, pipeline_messages, stage_traffic
from tests.estimate.test_shares import ATTENTION, DENSE, EXPERT, EXPERTS, MLP, shares

STREAM = 10 * 32 * 4


def sent(config, spread, **more):
    (share,) = shares(config, spread, [range(config.num_hidden_layers)])
    return stage_traffic(share, tokens=10, width=4, **more)


def test_rings():
    assert all_reduce(100, 4) == 150 and gather(100, 4) == 75
    assert all_reduce(100, 1) == gather(100, 1) == 0


def test_one_process_sends_nothing():
    for config in (DENSE, EXPERTS):
        traffic = sent(config, Spread())
        assert traffic.total(3) == {}
        (share,) = shares(config, Spread(), [range(config.num_hidden_layers)])
        assert not sum(gradient_traffic(share, width=4, micro_batches=3, tied=False).values())


def test_tensor_axis():
    traffic = sent(DENSE, Spread(tensor=2))
    # Two all-reduces a block and one of the embedding, and three numbers a token for the loss.
    assert traffic.forward["tensor"] == 5 * STREAM + 3 * 10 * 4
    assert traffic.backward["tensor"] == 5 * STREAM  # the last is of the head's input
    again = sent(DENSE, Spread(tensor=2), rerun=frozenset({0}))
    assert again.backward["tensor"] == 7 * STREAM


def test_sequence_parallel_sends_as_much_in_halves():
    traffic = sent(DENSE, Spread(tensor=2, sequence_parallel=True))
    assert traffic.forward["sequence"] == traffic.backward["sequence"] == 4 * STREAM + 2 * STREAM / 2
    assert traffic.forward["tensor"] == 3 * 10 * 4


def test_experts_go_there_and_back():
    spread = Spread(sharding=4, expert=4, moe_group="dp")
    traffic = sent(EXPERTS, spread)
    rows = 2 * STREAM * 3 / 4
    assert traffic.forward["expert"] == traffic.backward["expert"] == 2 * 2 * rows
    assert sent(EXPERTS, spread, dispatch=1.0).forward["expert"] == 2 * (rows / 4 + rows)


def test_experts_on_the_tensor_axis():
    same_tokens = sent(EXPERTS, Spread(tensor=2, expert=2, moe_group="mp"))
    assert same_tokens.forward["expert"] == 0
    assert same_tokens.forward["tensor"] == 7 * STREAM + 120
    halves = sent(EXPERTS, Spread(tensor=2, expert=2, moe_group="mp", sequence_parallel=True))
    assert halves.forward["expert"] == 2 * 2 * (2 * STREAM / 2 / 2)


def test_context_axis():
    traffic = sent(DENSE, Spread(context=4))
    keys_and_values = 2 * 10 * 32 * 4
    assert traffic.forward["context"] == 2 * 3 * keys_and_values
    assert traffic.backward["context"] == 2 * traffic.forward["context"]


@pytest.mark.parametrize(
    ("stage", "times_scattered", "times_gathered"), [(1, 1, 1), (2, 3, 1), (3, 3, 2 * 3)]
)
def test_sharding(stage, times_scattered, times_gathered):
    spread = Spread(data=2, sharding=4, sharding_stage=stage)
    (share,) = shares(DENSE, spread, [range(2)])
    found = gradient_traffic(share, width=4, micro_batches=3, tied=False)
    size = 4 * DENSE.num_parameters()
    assert found["sharding"] == (times_scattered + times_gathered) * size * 3 / 4
    assert found["data"] == size / 4  # 2 (2-1)/2 of the shard


def test_gradients_of_experts_go_to_those_that_hold_the_same():
    (share,) = shares(EXPERTS, Spread(data=4, expert=2, moe_group="dp"), [range(3)])
    found = gradient_traffic(share, width=4, micro_batches=1, tied=False)
    held = 2 * 2 * EXPERT
    assert share.trained.experts == held
    assert found["data"] == 2 * 3 / 4 * 4 * share.trained.dense + 2 * 1 / 2 * 4 * held
    assert "sharding" not in found


def test_ends_of_a_pipeline():
    first, last = shares(DENSE, Spread(pipeline=2), [[0], [1]])
    assert pipeline_messages(first, tokens=10, width=4) == STREAM
    assert gradient_traffic(last, width=4, micro_batches=1, tied=True)["pipeline"] == 4 * 1000 * 32
    parted = shares(DENSE, Spread(pipeline=2, tensor=2, sequence_parallel=True), [[0], [1]])[0]
    assert pipeline_messages(parted, tokens=10, width=4) == STREAM / 2
    # Norms see a part of the positions each, so their gradients are summed.
    assert gradient_traffic(parted, width=4, micro_batches=1, tied=False)["sequence"] == 4 * 64
    assert parted.weights.split == (ATTENTION + MLP + 32000) / 2
