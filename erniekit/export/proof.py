"""The same question to two model folders: do they give the same logits?"""

from pathlib import Path

import numpy as np

from erniekit.errors import CheckpointError

# Largest difference that rounding of weights may make, as a share of the largest logit.
_BOUNDS = {"bfloat16": 0.1, "float16": 0.02, "float32": 0.0}

_NUM_ROWS = 2
_NUM_COLUMNS = 24


def compare_logits(source: Path, export: Path, *, exact: bool, dtype: str) -> tuple[float, float]:
    """Compare the logits of probe tokens, computed in fp32 from both folders.

    One model is in memory at a time.

    Args:
        exact: no tensor was rounded, so the logits have to be equal.
        dtype: number format of the export, as in config.json.

    Returns:
        The largest logit, and the largest difference.

    Raises:
        CheckpointError: they differ by more than the format explains.
    """
    expected = probe_logits(source)
    found = probe_logits(export)
    if expected.shape != found.shape:
        raise CheckpointError(f"{export}: logits of shape {found.shape}, the source's have {expected.shape}")
    largest = float(np.abs(expected).max())
    difference = float(np.abs(expected - found).max())
    bound = 0.0 if exact else _BOUNDS[dtype] * largest
    if not difference <= bound:
        raise CheckpointError(
            f"{export}: logits of probe tokens differ by {difference:.3g} from the source's (largest logit "
            f"{largest:.3g}, allowed {bound:.3g}); nothing was exported"
        )
    return largest, difference


def probe_logits(folder: Path) -> np.ndarray:
    """Logits [rows, columns, vocabulary] of fixed pseudo-random tokens, computed in fp32."""
    import paddle

    from erniekit.assemble import load_for_inference

    built = load_for_inference(folder, compute_type="fp32")
    vocab_size = built.config.vocab_size
    ids_BT = np.random.default_rng(0).integers(0, vocab_size, size=(_NUM_ROWS, _NUM_COLUMNS), dtype=np.int64)
    positions_BT = np.tile(np.arange(_NUM_COLUMNS, dtype=np.int64), (_NUM_ROWS, 1))
    with paddle.no_grad():
        hidden_BTD = built.model(
            paddle.to_tensor(ids_BT),
            paddle.to_tensor(positions_BT),
            paddle.zeros([_NUM_ROWS, _NUM_COLUMNS], dtype="int32"),
        )
        logits_NV = built.model.logits(hidden_BTD.reshape([-1, hidden_BTD.shape[-1]]))
    return logits_NV.numpy().reshape(_NUM_ROWS, _NUM_COLUMNS, -1)
