from erniekit.estimate.memory import PROCESS, training_memory
from erniekit.testing.tiny_checkpoint import tiny_config

FIELDS = dict(
    num_trained=100, compute_type="fp32", rows=2, seq_len=8, attended=4.0, logits_rows=1000, on_cpu=True
)


def test_by_hand():
    config = tiny_config(vocab_size=10, num_hidden_layers=3)
    found = training_memory(config, **FIELDS)
    # H 32, Q 64, K 32, I 48, N 4: 8H + 4(Q+K) + 4Q + 4K + 6I + 3*4*4 numbers a token and layer.
    token = 256 + 384 + 256 + 128 + 288 + 48
    assert found == {
        "weights": config.num_parameters() * 4,
        "gradients": 400,
        "optimizer": 800,
        "activations": 2 * 8 * 3 * token * 4,
        "logits": 2 * 16 * 10 * 4 + 2 * 10 * 32 * 4,
        "process": PROCESS,
    }


def test_bf16_halves_weights_and_pays_for_masters():
    config = tiny_config()
    found = training_memory(config, **{**FIELDS, "compute_type": "bf16", "on_cpu": False})
    exact = training_memory(config, **{**FIELDS, "on_cpu": False})
    assert found["weights"] * 2 == exact["weights"] and found["activations"] * 2 == exact["activations"]
    assert found["gradients"] == 600 and found["optimizer"] == 1200
