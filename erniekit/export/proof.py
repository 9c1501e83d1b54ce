"""The same question to two model folders: do they give the same logits?

B rows, T columns, V vocabulary
"""

from pathlib import Path
from typing import Any

import numpy as np

from erniekit.errors import CheckpointError

# Largest difference that rounding of weights may make, as a share of the largest logit. Measured:
# 0.024 to 0.065 in bf16 (the 135M starter and two tiny random models), 0.0014 in fp16 (the starter).
# That each number is rounded rightly is checked bit by bit elsewhere; this is a check of the whole.
_BOUNDS = {"bfloat16": 0.25, "float16": 0.05}
# A merged adapter differs by the order of sums too, even in fp32; measured 2e-6.
_MERGED = 1e-4

_NUM_ROWS = 2
_NUM_COLUMNS = 24


def compare_logits(
    source: Path, export: Path, adapter: Path | None = None, *, exact: bool, dtype: str
) -> tuple[float, float]:
    """Compare the logits of probe tokens, computed in fp32 from both folders.

    One model is in memory at a time.

    Args:
        adapter: what the source is used with, unmerged.
        exact: no tensor was rounded, so the logits have to be equal.
        dtype: number format of the export, as in config.json.

    Returns:
        The largest logit, and the largest difference.

    Raises:
        CheckpointError: they differ by more than the format explains.
    """
    expected = probe_logits(source, adapter)
    found = probe_logits(export)
    if expected.shape != found.shape:
        raise CheckpointError(f"{export}: logits of shape {found.shape}, the source's have {expected.shape}")
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - found).max())
    bound = 0.0 if exact else _BOUNDS.get(dtype, _MERGED) * largest
    if not difference <= bound:
        raise CheckpointError(
            f"{export}: logits of probe tokens differ by {difference:.3g} from the source's (largest logit "
            f"{largest:.3g}, allowed {bound:.3g}); nothing was exported"
        )
    return largest, difference


def probe_logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    """Logits [B, T, V] of fixed pseudo-random tokens, computed in fp32."""
    from erniekit.assemble import load_for_inference

    built = load_for_inference(folder, [adapter] if adapter else [], compute_type="fp32")
    size = (_NUM_ROWS, _NUM_COLUMNS)
    ids_BT = np.random.default_rng(0).integers(0, built.config.vocab_size, size=size, dtype=np.int64)
    return logits_of(built.model, ids_BT)


def logits_of(model: Any, ids_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of rows of tokens, no padding."""
    import paddle

    num_rows, num_columns = ids_BT.shape
    positions_BT = np.tile(np.arange(num_columns, dtype=np.int64), (num_rows, 1))
    with paddle.no_grad():
        hidden_BTD = model(
            paddle.to_tensor(ids_BT),
            paddle.to_tensor(positions_BT),
            paddle.zeros([num_rows, num_columns], dtype="int32"),
        )
        logits_NV = model.logits(hidden_BTD.reshape([-1, hidden_BTD.shape[-1]]))
    return logits_NV.numpy().reshape(num_rows, num_columns, -1)
