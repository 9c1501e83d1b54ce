"""The comparison of two folders finds what is different, and allows what rounding explains."""

from pathlib import Path

import numpy as np
import pytest

from erniekit.assemble import load_for_inference
from erniekit.errors import CheckpointError
from erniekit.export.proof import Comparison, compare_logits, logits_of, probe_logits
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint

ROWS = [[5, 9, 200, 31], [7, 7], [130, 12, 4, 250, 66, 3]]


def compare(first: Path, second: Path, *, exact: bool, dtype: str) -> Comparison:
    found = probe_logits(second, ROWS)
    return compare_logits(probe_logits(first, ROWS), found, second, exact=exact, dtype=dtype)


def test_equal_folders_have_equal_logits(tmp_path: Path) -> None:
    first, second = write_tiny_checkpoint(tmp_path / "a"), write_tiny_checkpoint(tmp_path / "b")
    found = compare(first, second, exact=True, dtype="float32")
    assert found.difference == 0.0 and (found.num_same, found.num_tokens) == (12, 12)
    assert found.largest == pytest.approx(np.abs(probe_logits(first, ROWS)).max())
    assert "the same likeliest token at 12 of 12 places" in str(found)


def test_texts_do_not_see_each_other(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "a")
    alone = np.concatenate([probe_logits(folder, [row]) for row in ROWS])
    np.testing.assert_allclose(probe_logits(folder, ROWS), alone, atol=1e-5)
    built = load_for_inference(folder, compute_type="fp32")
    np.testing.assert_allclose(logits_of(built.model, np.array([ROWS[2]]))[0], alone[6:], atol=1e-5)


def test_other_weights_are_found_even_with_the_bound_of_bf16(tmp_path: Path) -> None:
    first, second = write_tiny_checkpoint(tmp_path / "a"), write_tiny_checkpoint(tmp_path / "b", seed=1)
    with pytest.raises(CheckpointError, match="nothing was exported"):
        compare(first, second, exact=False, dtype="bfloat16")


def test_other_vocabulary_is_found(tmp_path: Path) -> None:
    first = write_tiny_checkpoint(tmp_path / "a")
    second = write_tiny_checkpoint(tmp_path / "b", tiny_config(vocab_size=300))
    with pytest.raises(CheckpointError, match="shape"):
        compare(first, second, exact=True, dtype="float32")
