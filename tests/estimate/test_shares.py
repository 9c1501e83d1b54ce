"""What one process holds of a model: numbers worked by hand."""

import pytest

from erniekit.estimate.shares import Spread, build_shares
from erniekit.models.registry import load_family
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

# hidden 32, 4 heads over 2 of 16 (Q 64, K 32), inner 48; experts: 3 blocks, 4 of width 24, shared 48.
DENSE = tiny_config(vocab_size=1000, tie_word_embeddings=True, use_bias=False)
EXPERTS = tiny_moe_config(vocab_size=1000, tie_word_embeddings=False, use_bias=False)
ATTENTION, MLP = 32 * 128 + 64 * 32, 3 * 32 * 48
EXPERT = 3 * 32 * 24


def shares(config, spread, stages, places=None, **more):
    family = load_family(config)
    places = places or [[stage] for stage in range(len(stages))]
    return build_shares(
        config, spread, stages, places, shapes=family.weights.memory_shapes(config), parts=family.plan, **more
    )


def test_one_process_holds_all_and_answers_as_the_config_does():
    for config in (DENSE, EXPERTS):
        (share,) = shares(config, Spread(), [range(config.num_hidden_layers)])
        # But for the biases of two routers of four experts.
        assert share.weights.fixed == (8 if config is EXPERTS else 0)
        assert share.num_parameters() == share.trained.total + share.weights.fixed == config.num_parameters()
        assert share.first and share.last
        for name in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"):
            assert getattr(share, name) == getattr(config, name)
    assert share.moe_k == 2 and share.shared_intermediate_size() == 48
    assert [share.is_moe_layer(block) for block in range(3)] == [False, True, True]


def test_tensor_ranks_split_matrices_and_share_norms():
    (share,) = shares(DENSE, Spread(tensor=2), [range(2)])
    assert share.weights.split == (2 * (ATTENTION + MLP) + 1000 * 32) / 2
    assert share.weights.same == 5 * 32
    assert share.num_attention_heads == 2 and share.vocab_size == 500
    (positions,) = shares(DENSE, Spread(tensor=2, sequence_parallel=True), [range(2)])
    assert positions.num_attention_heads == 4  # the positions are split instead


def test_stages_hold_their_blocks_and_a_tied_embedding_is_held_twice():
    first, last = shares(DENSE, Spread(pipeline=2), [[0], [1]])
    block = ATTENTION + MLP + 2 * 32
    assert first.weights.total == block + 1000 * 32
    assert last.weights.total == block + 1000 * 32 + 32
    assert (first.first, first.last, last.first, last.last) == (True, False, False, True)


def test_a_rank_with_the_first_and_the_last_stage_holds_both_ends():
    ends, middle = shares(EXPERTS, Spread(pipeline=2), [[0], [1], [2], []], [[0, 3], [1, 2]])
    assert ends.first and ends.last and not middle.first and not middle.last
    assert ends.weights.split == ATTENTION + MLP + 2 * 1000 * 32
    assert middle.blocks == (1, 2)


def test_biases_of_columns_are_split_and_of_rows_not():
    config = tiny_config(vocab_size=1000, use_bias=True)
    (share,) = shares(config, Spread(tensor=2), [range(2)])
    assert share.weights.same == 5 * 32 + 2 * 2 * 32


@pytest.mark.parametrize(
    ("spread", "experts", "copies"),
    [
        (Spread(tensor=2), 2, 1),  # dummy: every rank half of each expert's matrices
        (Spread(tensor=2, expert=2, moe_group="mp"), 2, 1),
        (Spread(sharding=4, expert=2, moe_group="dp"), 2, 2),
        (Spread(data=2, tensor=2, expert=2, moe_group="dp"), 1, 1),
        (Spread(data=2, tensor=2, expert=4, moe_group="world"), 1, 1),
        (Spread(data=2, sharding=2), 4, 4),
    ],
)
def test_experts_and_their_copies(spread, experts, copies):
    (share,) = shares(EXPERTS, spread, [range(3)])
    assert share.weights.experts == 2 * experts * EXPERT
    assert spread.expert_copies == copies == len(spread.ranks_along("expert_replicas", 0))


def test_states_of_experts_are_shared_by_those_that_hold_the_same():
    assert Spread(sharding=168, pipeline=12, expert=8, moe_group="dp").expert_sharding == 21
    assert Spread(sharding=3, tensor=8, expert=8, moe_group="mp").expert_sharding == 3
    assert Spread(sharding=4, tensor=2, expert=4, moe_group="world").expert_sharding == 2
    assert Spread(data=4, sharding=2, expert=4, moe_group="dp").expert_sharding == 1


def test_rows_of_experts():
    """For a choice of a token: ranks with the same tokens share its row, ranks with other tokens do not."""
    same = Spread(tensor=2, expert=2, moe_group="mp")
    assert same.expert_rows_per_choice() == 0.5
    assert Spread(tensor=2, expert=2, moe_group="mp", sequence_parallel=True).expert_rows_per_choice() == 1
    # Matrices in halves: both ranks compute with all rows, also those of the other's tokens.
    assert Spread(tensor=2, sequence_parallel=True).expert_rows_per_choice() == 2


def test_an_adapter_beside_frozen_weights():
    beside = {"model.layers.0.self_attn.qkv_proj.lora_A": (32, 12)}
    beside["model.layers.0.self_attn.qkv_proj.lora_B"] = (4, 128)
    family = load_family(DENSE)
    frozen = dict.fromkeys(family.weights.memory_shapes(DENSE), False)
    (share,) = shares(DENSE, Spread(tensor=2), [range(2)], is_trained=frozen, beside=beside)
    # Of a column matrix A is the same everywhere, and B is split.
    assert share.trained.same == 32 * 12 and share.trained.split == 4 * 64
