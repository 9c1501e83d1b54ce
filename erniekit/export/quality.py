"""How far a quantised model is from the one in full, on held-out text.

Both give hidden states of the same tokens; the output layer is the same. Over all tokens: the divergence
KL(full || quantised) of the next token's distribution in nats, and how often the likeliest token is the same.
Over the labels: the loss of each, and what follows from it.

    N tokens, D hidden size, V vocabulary
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle

from erniekit.data.pack import Batch
from erniekit.errors import DataError
from erniekit.export.calibration import arrays_of

_CHUNK = 256


@dataclass(frozen=True)
class Quality:
    """Figures of a comparison; losses in nats a label."""

    loss: float
    quantised_loss: float
    divergence: float
    same: float
    num_labels: int
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """Of the model in full."""
        return math.exp(self.loss)

    @property
    def quantised_perplexity(self) -> float:
        """Of the quantised model."""
        return math.exp(min(self.quantised_loss, 700.0))

    @property
    def drop(self) -> float:
        """By which share perplexity rises."""
        return math.exp(min(self.quantised_loss - self.loss, 700.0)) - 1

    def in_words(self) -> str:
        """A sentence."""
        return (
            f"held-out perplexity {self.quantised_perplexity:.3f} (in full {self.perplexity:.3f}, "
            f"{self.drop:+.1%}), divergence {self.divergence:.4f} nats a token, the same likeliest token "
            f"at {self.same:.1%} of {self.num_tokens} places"
        )

    def to_json(self) -> dict[str, float]:
        """All figures."""
        more = {
            "perplexity": self.perplexity,
            "quantised_perplexity": self.quantised_perplexity,
            "drop": self.drop,
        }
        return {**asdict(self), **more}


@paddle.no_grad()
def hidden_states(model: Any, batches: Sequence[Batch]) -> list[np.ndarray]:
    """What comes before the output layer, fp32 [B, T, D] of every batch."""
    found = []
    for batch in batches:
        given = {name: paddle.to_tensor(array) for name, array in arrays_of(batch).items()}
        found.append(model(**given).astype("float32").numpy())
    return found


@paddle.no_grad()
def compare(
    model: Any, batches: Sequence[Batch], expected: Sequence[np.ndarray], found: Sequence[np.ndarray]
) -> Quality:
    """Compare hidden states of a model in full and of a quantised one.

    Args:
        model: either of them, for the output layer.

    Raises:
        DataError: nothing in the held-out data is predicted.
    """
    head = model.head()
    divergence = loss = other_loss = 0.0
    same = num_tokens = num_labels = 0
    for batch, one, other in zip(batches, expected, found, strict=True):
        inside = batch.is_token().reshape(-1)
        labels = batch.labels.reshape(-1)[inside]
        states = [array.reshape(-1, array.shape[-1])[inside] for array in (one, other)]
        for start in range(0, len(labels), _CHUNK):
            part = slice(start, start + _CHUNK)
            logs = [_log_softmax(head.logits(paddle.to_tensor(array[part])).numpy()) for array in states]
            divergence += float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(dtype=np.float64))
            same += int((logs[0].argmax(-1) == logs[1].argmax(-1)).sum())
            kept = np.flatnonzero(labels[part] >= 0)
            own = (kept, labels[part][kept])
            loss -= float(logs[0][own].sum(dtype=np.float64))
            other_loss -= float(logs[1][own].sum(dtype=np.float64))
            num_labels += len(kept)
        num_tokens += len(labels)
    if not num_labels:
        raise DataError("the held-out set has no token to predict: check eval_dataset_path and its `label`s")
    return Quality(
        loss / num_labels,
        other_loss / num_labels,
        divergence / num_tokens,
        same / num_tokens,
        num_labels,
        num_tokens,
    )


def _log_softmax(logits_NV: np.ndarray) -> np.ndarray:
    """In place; Paddle's own takes hundreds of times longer on a CPU."""
    logits_NV -= logits_NV.max(1, keepdims=True)
    logits_NV -= np.log(np.exp(logits_NV).sum(1, keepdims=True))
    return logits_NV
