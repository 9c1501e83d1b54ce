"""FLOPs worked by hand."""

import pytest

from erniekit.estimate.flops import forward_flops, seconds, training_flops, utilisation
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

CONFIG = tiny_config(vocab_size=1000, tie_word_embeddings=True, use_bias=False)
# Multiplications a token: qkv 32*128, o 64*32, MLP 3*32*48, in two layers; head 32*1000.
WEIGHTS = 2 * (32 * 128 + 64 * 32 + 3 * 32 * 48)
HEAD = 32_000


def test_forward():
    # Alone in its sample a token attends to itself: 64 products for the score, 64 for the sum, 2 layers.
    assert forward_flops(CONFIG, attended=1) == 2 * (WEIGHTS + HEAD + 2 * 2 * 64)
    # In a sample of 9, tokens see 5 on average.
    assert forward_flops(CONFIG, attended=9) == 2 * (WEIGHTS + HEAD + 5 * 2 * 2 * 64)
    assert forward_flops(CONFIG, attended=1, labelled_share=0.5) == 2 * (WEIGHTS + HEAD / 2 + 2 * 2 * 64)
    assert forward_flops(CONFIG, attended=33) == CONFIG.flops_per_token(33)


def test_experts_that_are_not_chosen_cost_nothing():
    config = tiny_moe_config(vocab_size=1000)
    # Attention in three layers; an MLP; in two layers the router, two of four experts, the shared ones.
    attention, mlp = 32 * 128 + 64 * 32, 3 * 32 * 48
    experts = 32 * 4 + 2 * 3 * 32 * 24 + 3 * 32 * 48
    weights = 3 * attention + mlp + 2 * experts + 32_000
    assert forward_flops(config, attended=1) == 2 * (weights + 3 * 2 * 64)
    assert training_flops(config, attended=1) == 3 * forward_flops(config, attended=1)


def test_multi_token_prediction_by_hand():
    config = tiny_moe_config(vocab_size=1000, num_nextn_predict_layers=1)
    block = 32 * 128 + 64 * 32 + 3 * 32 * 48 + 2 * 32 * 32 + 32_000
    without = training_flops(config, attended=1)
    assert training_flops(config, attended=1, ahead=True) - without == 3 * 2 * (block + 2 * 64)
    # Layer 0 with experts: the router, two experts, the shared ones in place of the MLP.
    with_experts = tiny_moe_config(vocab_size=1000, num_nextn_predict_layers=1, moe_layer_start_index=(0,))
    experts = 32 * 4 + 2 * 3 * 32 * 24 + 3 * 32 * 48
    assert with_experts.ahead_weights() == block - 3 * 32 * 48 + experts
    assert training_flops(CONFIG, attended=9, ahead=True) == training_flops(CONFIG, attended=9)


def test_training_is_three_times_the_forward_pass():
    assert training_flops(CONFIG, attended=9) == 3 * forward_flops(CONFIG, attended=9)
    # Nothing trained: gradients flow, but no weight gets one; the two products of attention do.
    frozen = training_flops(CONFIG, attended=9, trained_share=0.0)
    assert frozen == 2 * forward_flops(CONFIG, attended=9) + 2 * 5 * 2 * 2 * 64


def test_utilisation_and_time():
    assert utilisation(1e9, 100.0, 4e11) == pytest.approx(0.25)
    assert seconds(1e12, 4e11, expected_utilisation=0.25) == pytest.approx(10.0)
