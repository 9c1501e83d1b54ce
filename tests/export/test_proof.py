"""The comparison of two folders finds what is different, and allows what rounding explains."""

from pathlib import Path

import numpy as np
import pytest

from erniekit.errors import CheckpointError
from erniekit.export.proof import compare_logits, probe_logits
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


def test_equal_folders_have_equal_logits(tmp_path: Path) -> None:
    first, second = write_tiny_checkpoint(tmp_path / "a"), write_tiny_checkpoint(tmp_path / "b")
    largest, difference = compare_logits(first, second, exact=True, dtype="float32")
    assert difference == 0.0
    assert largest == pytest.approx(np.abs(probe_logits(first)).max())


def test_other_weights_are_found_even_with_the_bound_of_bf16(tmp_path: Path) -> None:
    first, second = write_tiny_checkpoint(tmp_path / "a"), write_tiny_checkpoint(tmp_path / "b", seed=1)
    with pytest.raises(CheckpointError, match="nothing was exported"):
        compare_logits(first, second, exact=False, dtype="bfloat16")


def test_other_vocabulary_is_found(tmp_path: Path) -> None:
    first = write_tiny_checkpoint(tmp_path / "a")
    second = write_tiny_checkpoint(tmp_path / "b", tiny_config(vocab_size=300))
    with pytest.raises(CheckpointError, match="shape"):
        compare_logits(first, second, exact=True, dtype="float32")
