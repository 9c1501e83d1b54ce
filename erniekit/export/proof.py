"""The same question to two model folders: do they give the same logits?

N tokens of all texts, V vocabulary, B rows, T columns, D hidden size
"""

from collections.abc import Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Comparison:
    """The largest logit and difference of two folders, and at how many tokens the likeliest is the same."""

    largest: float
    difference: float
    num_tokens: int
    num_same: int

    def __str__(self) -> str:
        return (
            f"largest difference of the logits of probe texts {self.difference:.3g} (largest logit "
            f"{self.largest:.3g}), the same likeliest token at {self.num_same} of {self.num_tokens} places"
        )


def compare_logits(
    expected: np.ndarray, found: np.ndarray, place: Path, *, exact: bool, dtype: str
) -> Comparison:
    """Compare logits [N, V] of the source and of what was written.

    Args:
        place: what was written, for messages.
        exact: no tensor was rounded, so the logits have to be equal.
        dtype: number format of what was written, as in config.json.

    Raises:
        CheckpointError: they differ by more than the format explains.
    """
    if expected.shape != found.shape:
        raise CheckpointError(f"{place}: logits of shape {found.shape}, the source's have {expected.shape}")
    compared = comparison(expected, found)
    bound = 0.0 if exact else _BOUNDS.get(dtype, _MERGED) * compared.largest
    if not compared.difference <= bound:
        raise CheckpointError(
            f"{place}: logits of probe texts differ by {compared.difference:.3g} from the source's (largest "
            f"logit {compared.largest:.3g}, allowed {bound:.3g}); nothing was exported"
        )
    return compared


def comparison(expected: np.ndarray, found: np.ndarray) -> Comparison:
    """How far logits [N, V] are apart."""
    same = int((expected.argmax(-1) == found.argmax(-1)).sum())
    difference = float(np.abs(expected - found).max())
    return Comparison(float(np.abs(expected).max()), difference, len(expected), same)


def probe_logits(
    folder: Path, rows: Sequence[Sequence[int]], adapter: Path | None = None, scheme: str | None = None
) -> np.ndarray:
    """`packed_logits` of a model folder, with an adapter on it or without, in fp32.

    Args:
        scheme: what the weights are quantised by.
    """
    from erniekit.assemble import load_for_inference

    built = load_for_inference(folder, [adapter] if adapter else [], compute_type="fp32", scheme=scheme)
    return packed_logits(built.model, rows)


def packed_logits(model: Any, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Logits [N, V] of all tokens of rows, which do not see each other."""
    lengths = [len(row) for row in rows]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    ids_BT = np.concatenate([np.asarray(row, dtype=np.int64) for row in rows])[None]
    logits: np.ndarray = _logits(model, ids_BT, starts[None])[0]
    return logits


def logits_of(model: Any, ids_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of rows of tokens, no padding."""
    return _logits(model, ids_BT, np.zeros(ids_BT.shape, dtype=np.int64))


def _logits(model: Any, ids_BT: np.ndarray, starts_BT: np.ndarray) -> np.ndarray:
    """Logits [B, T, V]; a token sees its row from its start on."""
    import paddle

    num_rows, num_columns = ids_BT.shape
    with paddle.no_grad():
        hidden_BTD = model(
            paddle.to_tensor(ids_BT),
            paddle.to_tensor(np.arange(num_columns, dtype=np.int64) - starts_BT),
            paddle.to_tensor(starts_BT.astype(np.int32)),
        )
        logits_NV = model.logits(hidden_BTD.reshape([-1, hidden_BTD.shape[-1]]))
    return logits_NV.numpy().reshape(num_rows, num_columns, -1)
