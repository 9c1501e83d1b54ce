"""Exact bytes, by hand."""

from erniekit.estimate.state import gigabytes, model_bytes, training_state
from erniekit.testing.tiny_checkpoint import tiny_config


def test_bytes_of_a_run() -> None:
    assert training_state(40, 10, compute_type="fp32") == {"weights": 40, "gradients": 40, "optimizer": 80}
    assert training_state(20, 3, compute_type="bf16") == {"weights": 20, "gradients": 12, "optimizer": 36}


def test_bytes_of_a_model() -> None:
    """Of 32 x 128, 64 x 32, 32 x 96 and 48 x 32 in each of two layers, a byte each and a scale an output."""
    config = tiny_config()
    assert model_bytes(config, compute_type="bf16") == 2 * config.num_parameters()
    numbers, outputs = 32 * 128 + 64 * 32 + 32 * 96 + 48 * 32, 128 + 32 + 96 + 32
    expected = 2 * (config.num_parameters() - 2 * numbers) + 2 * (numbers + 4 * outputs)
    assert model_bytes(config, compute_type="bf16", scheme="wint8") == expected


def test_sizes_in_a_sentence() -> None:
    found = [gigabytes(size) for size in (1.2e6, 1.26e9, 1.26e10, 5.39e12)]
    assert found == ["1.2 MB", "1.3 GB", "13 GB", "5,390 GB"]
