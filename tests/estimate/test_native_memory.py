"""Memory of a step by native kernels: every cause worked by hand."""

from dataclasses import replace

from erniekit.estimate import native_memory
from erniekit.estimate.memory import PROCESS, AdapterSize, training_memory
from erniekit.estimate.recompute import rows_of_experts
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

# hidden 32, inner 48, 2 layers, 4 heads over 2 of 16: Q = 64, K = 32; vocabulary 1000.
CONFIG = tiny_config(vocab_size=1000, tie_word_embeddings=True, use_bias=False)
PARAMETERS = CONFIG.num_parameters()


def estimate(config=CONFIG, **changes):
    fields = dict(
        num_trained=config.num_parameters(),
        compute_type="bf16",
        rows=2,
        seq_len=512,
        attended=256,
        logits_rows=512,
        on_cpu=True,
        micro_batches=1,
        native=True,
    )
    return training_memory(config, **{**fields, **changes})


# A token and layer: streams 2*32, projections and result 2*64 + 2*32, gate and up 2*48; 2 + 4 in fp32.
LAYER = 64 + 192 + 96
ENDS = 3 * 32


def test_causes_by_hand():
    causes = estimate()
    assert causes["weights"] == 2 * PARAMETERS
    assert causes["optimizer"] == (4 + 4 + 2) * PARAMETERS
    assert causes["activations"] == 1024 * (2 * (2 * LAYER + ENDS) + 4 * 2 * (2 + 4) + 4 * 16)
    assert causes["logits"] == 4 * 512 * 1000
    assert causes["gradients"] == 4 * 32000  # of the head, in fp32
    assert causes["process"] == PROCESS
    changing = causes["activations"] + causes["logits"] + causes["gradients"]
    assert causes["allocator"] == int(0.1 * changing)


def test_fp32_and_small_moments():
    causes = estimate(compute_type="fp32", logits_rows=1024)
    assert causes["weights"] == 4 * PARAMETERS and causes["optimizer"] == 8 * PARAMETERS
    assert causes["activations"] == 1024 * (4 * (2 * LAYER + ENDS) + 4 * 2 * (2 + 4) + 4 * 16)
    assert estimate(low_precision_moments=True)["optimizer"] == (2 + 2 + 2) * PARAMETERS


def test_blocks_that_predict_ahead():
    """One of the kind of layer 0, and five streams: inputs joined, last norm, labelled rows and gradient."""
    config = tiny_moe_config(vocab_size=1000, num_nextn_predict_layers=1)
    trained, left_out = estimate(config), estimate(config, depths=0)
    assert "logits" in trained and "logits" in left_out
    more = 1024 * (2 * (LAYER + 5 * 32) + 4 * (2 + 4))
    assert trained["activations"] - left_out["activations"] == more
    assert trained["weights"] == left_out["weights"]


def test_the_moment_of_the_peak():
    # Without logits to speak of, the first layer of the backward pass holds most.
    working = 2 * (3 * 48 + 4 * 32 + 2 * 64 + 2 * 32) + 4 * (64 + 2 * 32)
    backward = estimate(logits_rows=1)
    forward = estimate()
    assert backward["activations"] == forward["activations"] + 1024 * working and "logits" not in backward
    # With few tokens it is the end, when all gradients are there and one of two layers is left.
    end = estimate(rows=1, seq_len=4, attended=4, logits_rows=1)
    assert end["gradients"] == 4 * PARAMETERS
    assert end["activations"] == 4 * (forward["activations"] / 1024 / 2 + working)
    # Gradients of an earlier micro-batch are there all the time.
    assert estimate(micro_batches=2)["gradients"] == 4 * PARAMETERS


def test_what_is_frozen_costs_nothing():
    causes = estimate(num_trained=0)
    assert "optimizer" not in causes and "gradients" not in causes


def test_attention_dropout_goes_by_paddles_operators():
    more = estimate(attention_dropout=0.1)["activations"] - estimate()["activations"]
    assert more == 1024 * 2 * (2 * 64 + 4 * 3 * 4 * 256)


def test_experts():
    config = tiny_moe_config(moe_k=2, vocab_size=5000)
    width = config.moe_intermediate_size[0]
    experts = config.moe_k * (32 + 2 * width) + 2 * config.shared_intermediate_size()
    moe = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    dense = 2 * (config.num_hidden_layers - moe) * config.intermediate_size
    attention = config.num_hidden_layers * (64 + 192)
    expected = 2 * (attention + dense + moe * experts + ENDS)
    expected += 4 * (config.num_hidden_layers * 6 + 6 * config.moe_num_experts[0] * moe) + 4 * 16
    assert estimate(config, logits_rows=1000)["activations"] == 1024 * expected


def test_experts_work_with_sorted_rows_at_the_end():
    config = tiny_moe_config(moe_k=2, vocab_size=5000, moe_intermediate_size=(200,))
    parameters = config.num_parameters()
    end = estimate(config, num_trained=parameters, rows=1, seq_len=64, attended=64, logits_rows=1)
    assert end["gradients"] == 4 * parameters
    # Sorted rows and their gradient, the activation and the gradient of gate and up; the rest as ever.
    working = 2 * (2 * (2 * 32 + 3 * 200) + 4 * 32 + 2 * 64 + 2 * 32) + 4 * (64 + 2 * 32)
    kept = native_memory._kept_bytes(config, 64, width=2, attention_dropout=0.0)
    assert end["activations"] == int(64 * (kept / config.num_hidden_layers + working))


def test_a_capacity_leaves_fewer_rows():
    unlimited = tiny_moe_config(moe_k=2, vocab_size=5000)
    half = replace(unlimited, moe_capacity=(1.0, 2.0, 2.0))
    ample = replace(unlimited, moe_capacity=(64.0, 64.0, 64.0))
    moe = sum(map(half.is_moe_layer, range(half.num_hidden_layers)))
    fewer = 1024 * moe * 2 * (32 + 2 * half.moe_intermediate_size[0])
    kept = estimate(unlimited, logits_rows=1000)["activations"]
    assert estimate(half, logits_rows=1000)["activations"] == kept - fewer
    assert estimate(ample, logits_rows=1000)["activations"] == kept
    full = rows_of_experts(unlimited), rows_of_experts(half), rows_of_experts(ample)
    assert full == (2, 1.0, 2)


def test_constants_are_those_of_the_operators():
    from erniekit.ops.native import cross_entropy

    assert native_memory.LOGITS == cross_entropy.LOGITS


def test_an_adapter_by_hand():
    beside = estimate(num_trained=1000, adapter=AdapterSize(1000, kept=56, kept_fp32=8))
    without = estimate(num_trained=1000)
    assert beside["weights"] - without["weights"] == 2 * 1000
    assert beside["activations"] - without["activations"] == 1024 * (2 * 56 + 4 * 8)
    assert beside["optimizer"] == (4 + 4 + 2) * 1000
