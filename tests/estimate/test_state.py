"""Exact bytes, by hand."""

from erniekit.estimate.state import gigabytes, training_state


def test_bytes_of_a_run() -> None:
    assert training_state(10, 10, compute_type="fp32") == {"weights": 40, "gradients": 40, "optimizer": 80}
    assert training_state(10, 3, compute_type="bf16") == {"weights": 20, "gradients": 12, "optimizer": 36}


def test_sizes_in_a_sentence() -> None:
    found = [gigabytes(size) for size in (1.2e6, 1.26e9, 1.26e10, 5.39e12)]
    assert found == ["1.2 MB", "1.3 GB", "13 GB", "5,390 GB"]
