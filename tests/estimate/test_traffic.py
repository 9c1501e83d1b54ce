"""Bytes sent, worked by hand: hidden 32, 2 of 4 heads have keys of 16, 10 tokens of 4 bytes."""

import pytest

from erniekit.estimate.shares import Spread
from erniekit.estimate.traffic import (
    Passing,
    all_reduce,
    compared,
    gather,
    gradient_traffic,
    pipeline_messages,
    stage_traffic,
)
from erniekit.parallel.recomputation import Recomputation
from tests.estimate.test_shares import ATTENTION, DENSE, EXPERT, EXPERTS, MLP, shares

STREAM = 10 * 32 * 4
NUM_TENSORS = 2 + 2 * 6  # embedding, last norm; four matrices and two norms a block


# Of four positions that have a label: their rows, and three numbers of each.
LABELLED, LOSS = 4 * 32 * 4, 4 * 3 * 4


def sent(config, spread, recomputation=None, **more):
    (share,) = shares(config, spread, [range(config.num_hidden_layers)])
    passing = Passing(**{"tokens": 10, "labelled": 4, "width": 4, **more})
    return stage_traffic(share, passing, recomputation)


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
    # Two all-reduces a block and one of the embedding, and three numbers a label for the loss.
    assert traffic.forward["tensor"] == 5 * STREAM + LOSS
    assert traffic.backward["tensor"] == 4 * STREAM + LABELLED  # the last is of the head's input
    again = sent(DENSE, Spread(tensor=2), Recomputation((("block",), ()), head=True))
    assert again.backward["tensor"] == 6 * STREAM + LABELLED + LOSS
    attention = sent(DENSE, Spread(tensor=2), Recomputation((("attention",), ("core_attention",))))
    assert attention.backward["tensor"] == 5 * STREAM + LABELLED


def test_a_frozen_embedding_needs_no_gradient():
    (share,) = shares(DENSE, Spread(tensor=2), [range(2)])
    share.trains_embedding = False
    passing = Passing(tokens=10, labelled=4, width=4)
    assert stage_traffic(share, passing).backward["tensor"] == 3 * STREAM + LABELLED


def test_sequence_parallel_sends_as_much_in_halves():
    traffic = sent(DENSE, Spread(tensor=2, sequence_parallel=True))
    # The embedding is scattered, and the last norm's result gathered, of which each takes its part back.
    assert traffic.forward["tensor"] == 4 * STREAM + 2 * STREAM / 2 + LOSS
    assert traffic.backward["tensor"] == 4 * STREAM + STREAM / 2 + LABELLED


def test_experts_go_there_and_back():
    spread = Spread(sharding=4, expert=4, moe_group="dp")
    traffic = sent(EXPERTS, spread)
    rows, counts = 2 * STREAM * 3 / 4, 3 * 4 * 8
    assert traffic.forward["expert"] == 2 * (2 * rows + counts)
    assert traffic.backward["expert"] == 2 * 2 * rows
    # 32 bytes and the scale of a tile in place of 32 fp32 numbers.
    as_bytes = sent(EXPERTS, spread, fp8_dispatch=True)
    assert as_bytes.forward["expert"] == 2 * (rows * 36 / 128 + rows + counts)
    assert as_bytes.backward["expert"] == traffic.backward["expert"]
    assert sent(EXPERTS, spread, away=0.5).backward["expert"] == 2 * 2 * STREAM


def test_experts_on_the_tensor_axis():
    same_tokens = sent(EXPERTS, Spread(tensor=2, expert=2, moe_group="mp"))
    # Every process has results of its experts for all tokens, and a part of the gradients of their weights.
    assert same_tokens.forward["expert"] == 2 * STREAM
    assert same_tokens.backward["expert"] == 2 * (STREAM + 10 * 2 * 4)
    assert same_tokens.forward["tensor"] == 7 * STREAM + LOSS
    split = sent(EXPERTS, Spread(tensor=2))
    assert "expert" not in split.forward or not split.forward["expert"]
    assert split.forward["tensor"] == 9 * STREAM + LOSS
    halves = sent(EXPERTS, Spread(tensor=2, expert=2, moe_group="mp", sequence_parallel=True))
    assert halves.forward["expert"] == 2 * (2 * (2 * STREAM / 2 / 2) + 4 * 8)
    # And what routers say of half the tokens: logits, probabilities, choices in 8 bytes, weights.
    assert halves.forward["tensor"] == 6 * STREAM + 2 * STREAM / 2 + LOSS + 2 * 5 * (
        2 * 4 * 4 + 2 * 8 + 2 * 4
    )


def test_context_axis():
    for ranks, keys in ((2, 1), (4, 1)):  # of two key heads, a process has one at the least
        traffic = sent(DENSE, Spread(context=ranks))
        queries = 4 / ranks
        assert traffic.forward["context"] == 2 * (ranks - 1) * 10 * (2 * queries + 2 * keys) * 16 * 4
        assert traffic.backward["context"] == traffic.forward["context"]
    with_experts, without = (sent(EXPERTS, Spread(context=2), router_losses=n) for n in (1, 0))
    assert with_experts.backward["context"] - without.backward["context"] == 2 * 10 * 4 * 4


def test_measured_bytes_stand_beside_those_of_their_axes():
    measured = {("replicas", "all_reduce"): 5, ("batch", "all_reduce"): 1, ("saving", "send"): 9}
    assert compared(measured, {"data": 4.0, "sharding": 2.0, "context": 0.0}) == {
        "data and sharding": (6, 6.0)
    }


@pytest.mark.parametrize(("stage", "times_scattered"), [(1, 1), (2, 3), (3, 3)])
def test_sharding(stage, times_scattered):
    spread = Spread(data=2, sharding=4, sharding_stage=stage)
    (share,) = shares(DENSE, spread, [range(2)])
    found = gradient_traffic(share, width=4, micro_batches=3, tied=False)
    size, flags = 4 * DENSE.num_parameters(), 4 * NUM_TENSORS
    outside = 4 * (1000 + 1) * 32
    gathered = size if stage < 3 else 3 * (2 * size - outside)
    assert found["sharding"] == times_scattered * (size * 3 / 4 + 3 * flags) + gathered * 3 / 4
    assert found["data"] == size / 4 + flags  # 2 (2-1)/2 of the shard


def test_gradients_of_experts_go_to_those_that_hold_the_same():
    (share,) = shares(EXPERTS, Spread(data=4, expert=2, moe_group="dp"), [range(3)])
    found = gradient_traffic(share, width=4, micro_batches=1, tied=False)
    held = 2 * 2 * EXPERT
    assert share.trained.experts == held
    experts = sum(part.is_expert for part in share.parts)
    assert experts == 4
    flags = 2 * 3 / 4 * 4 * (sum(part.is_trained for part in share.parts) - experts) + 4 * experts
    routers = 2 * 3 / 4 * 8 * 2
    assert found["data"] == 2 * 3 / 4 * 4 * share.trained.dense + 2 * 1 / 2 * 4 * held + flags + routers
    assert not found["sharding"]
    balanced = gradient_traffic(share, width=4, micro_batches=1, tied=False, balances=True)
    assert balanced["data"] - found["data"] == 2 * 3 / 4 * 8 * 2 * 4


def test_ends_of_a_pipeline():
    first, last = shares(DENSE, Spread(pipeline=2), [[0], [1]])
    assert pipeline_messages(first, tokens=10, width=4) == STREAM
    assert gradient_traffic(last, width=4, micro_batches=1, tied=True)["pipeline"] == 4 * 1000 * 32
    parted = shares(DENSE, Spread(pipeline=2, tensor=2, sequence_parallel=True), [[0], [1]])[0]
    assert pipeline_messages(parted, tokens=10, width=4) == STREAM / 2
    # Norms see a part of the positions each, so their gradients are summed.
    assert gradient_traffic(parted, width=4, micro_batches=1, tied=False)["tensor"] == (4 * 32 + 4) * 2
    assert parted.weights.split == (ATTENTION + MLP + 32000) / 2
