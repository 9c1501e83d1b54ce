"""Memory by cause: numbers worked by hand, and a real process beside the estimate."""

import subprocess
import sys
from pathlib import Path

import pytest

from erniekit.estimate import memory
from erniekit.estimate.memory import inference_memory, inner_numbers, training_memory
from erniekit.ops.kernels.library import find_library
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

ROOT = Path(__file__).parents[2]
# hidden 32, inner 48, 2 layers, 4 heads over 2 of 16: Q = 64, K = 32; vocabulary 1000.
CONFIG = tiny_config(vocab_size=1000, tie_word_embeddings=True, use_bias=False)
PARAMETERS = 1000 * 32 + 2 * (32 * (64 + 64) + 64 * 32 + 3 * 32 * 48) + 5 * 32


def estimate(**changes):
    fields = dict(
        num_trained=PARAMETERS,
        compute_type="fp32",
        rows=2,
        seq_len=512,
        attended=256,
        logits_rows=128,
        on_cpu=True,
    )
    return training_memory(CONFIG, **{**fields, **changes})


def test_causes_worked_by_hand():
    assert CONFIG.num_parameters() == PARAMETERS
    causes = estimate()
    assert causes["weights"] == causes["gradients"] == 4 * PARAMETERS
    assert causes["optimizer"] == 8 * PARAMETERS
    # A token and layer: norms 4*32, projections 64+64, rotation 96, attention 64 + 4*(256+128)/2,
    # MLP 3*48; after the layers 4*32 + 96.
    layer = 128 + 128 + 96 + 64 + 768 + 144
    assert causes["activations"] == 4 * 1024 * (2 * layer + 128 + 96)
    # Logits of 128 positions twice, and the gradient of the head.
    assert causes["logits"] == 2 * 4 * 128 * 1000 + 4 * 32 * 1000
    changing = causes["activations"] + causes["logits"] + causes["gradients"]
    assert causes["allocator"] == int(changing * 0.1)


def test_quantised_weights_are_counted_and_not_kept_wide():
    """Of 32 x 128, 64 x 32, 32 x 96 and 48 x 32 in two layers: a byte each, and a scale an output."""
    matrices, outputs = 2 * (32 * 128 + 64 * 32 + 32 * 96 + 48 * 32), 2 * (128 + 32 + 96 + 32)
    weights = 2 * (PARAMETERS - matrices) + matrices + 4 * outputs
    full, found = (estimate(compute_type="bf16", num_trained=100, scheme=s) for s in (None, "wint8"))
    assert found["weights"] == weights
    assert full["activations"] - found["activations"] == 4 * (PARAMETERS - 1000 * 32)
    settings = dict(compute_type="bf16", rows=1, columns=1, prompt=1, on_cpu=True)
    assert inference_memory(CONFIG, **settings, scheme="wint8")["weights"] == weights


def test_experts_by_hand():
    """Two of three layers hold four experts of width 24, a token takes two; shared ones of 48."""
    dense = inner_numbers(CONFIG)
    assert dense == 2 * 3 * 48
    experts = 2 * (2 * 32 + 3 * 24) + 3 * 48 + 6 * 4
    assert inner_numbers(tiny_moe_config()) == 3 * 48 + 2 * experts
    causes = inference_memory(
        tiny_moe_config(moe_k=4), compute_type="fp32", rows=1, columns=1, prompt=10, on_cpu=True
    )
    assert causes["activations"] == 10 * 4 * (4 * (32 + 4 * 24) + 2 * 32 + 2 * 4 * 10)


def test_bf16_on_a_cpu_keeps_weights_wide():
    causes = estimate(compute_type="bf16")
    assert causes["weights"] == 2 * PARAMETERS
    assert causes["optimizer"] == 12 * PARAMETERS  # two moments and a master
    assert causes["gradients"] == 4 * PARAMETERS  # summed in fp32
    layer = 6 * 32 + 128 + 2 * 64 + 768 + 144
    assert causes["activations"] == 4 * 1024 * (2 * layer + 128 + 96) + 4 * (PARAMETERS - 32000)


def test_one_micro_batch_has_no_gradients_at_the_peak():
    assert "gradients" not in estimate(micro_batches=1)
    # With few tokens the peak is the update, when all gradients are there.
    causes = estimate(micro_batches=1, rows=1, seq_len=4, attended=4)
    assert causes["gradients"] == 4 * PARAMETERS and "activations" not in causes
    assert causes["update"] == 3 * 4 * 32000


def test_what_is_frozen_costs_no_state():
    causes = estimate(num_trained=1000)
    assert causes["optimizer"] == 8000 and causes["gradients"] == 4000
    assert causes["weights"] == 4 * PARAMETERS


def test_long_samples_keep_no_attention_weights_but_with_dropout():
    plain = estimate(seq_len=4096, attended=2048)["activations"]
    dropped = estimate(seq_len=4096, attended=2048, attention_dropout=0.1)["activations"]
    assert dropped - plain == 4 * 2 * 4096 * 2 * (3 * 4 * 2048)


def test_the_cache_of_generation():
    causes = inference_memory(CONFIG, compute_type="bf16", rows=3, columns=100, prompt=20, on_cpu=False)
    assert causes["cache"] == 2 * 2 * 3 * 100 * 32 * 2
    assert causes["weights"] == 2 * PARAMETERS


def test_constants_are_those_of_the_operators():
    from erniekit.losses import cross_entropy
    from erniekit.ops import attention_cpu

    assert memory.MAX_LOGITS == cross_entropy.MAX_LOGITS
    assert (memory.TILE, memory.KEEP_WEIGHTS_UP_TO) == (attention_cpu.TILE, attention_cpu.KEEP_WEIGHTS_UP_TO)


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    ["", "--micro-batches 1 --rows 4 --sample 128", "--compute-type bf16 --rows 1"],
)
@pytest.mark.parametrize("kernels", ["paddle", "native"])
def test_a_real_step_takes_what_was_estimated(words, kernels, monkeypatch):
    if kernels == "native" and find_library().library is None:
        pytest.skip("native kernels do not run here")
    monkeypatch.delenv("ERNIEKIT_KERNELS", raising=False)
    command = [sys.executable, str(ROOT / "benchmarks" / "memory.py"), "--tolerance", "0.2", *words.split()]
    command += ["--kernels", kernels]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
