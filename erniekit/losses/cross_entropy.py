"""Cross-entropy of an output layer over hidden states: the loss of next-token prediction.

The operator behind it, `erniekit.ops.cross_entropy`, never holds the logits of all positions.

    N positions, D hidden size, V vocabulary
"""

from dataclasses import dataclass, field
from typing import Any

import paddle

from erniekit.ops.cross_entropy import IGNORED, linear_cross_entropy
from erniekit.ops.log_probabilities import linear_log_probabilities

# Logits held at once, at most: 256 MB in fp32. Larger chunks are no faster, only larger.
MAX_LOGITS = 1 << 26
# A gather costs a pass over the hidden states and a scatter backward: too much for the last of each row.
GATHER_BELOW = 0.95


class Columns:
    """Which columns of a row an output layer is given the hidden states of: here all of them.

    Where processes share the columns of rows, `share` is this one's of a number that all compute alike.
    """

    share = 1.0

    def own(self, array_BT: Any) -> Any:
        """The columns that are here, of an array or tensor [B, T, ...] of whole rows."""
        return array_BT

    def total(self, x: paddle.Tensor) -> paddle.Tensor:
        """The sum of x over the processes; what is computed of it counts for `share` in each."""
        return x


@dataclass(frozen=True)
class Head:
    """The output layer: `weight` is [V, D] when `transposed` (an embedding table), else [D, V]; bias [V]."""

    weight: paddle.Tensor
    transposed: bool
    bias: paddle.Tensor | None = None
    columns: Columns = field(default=Columns(), kw_only=True)

    def logits(self, hidden_ND: paddle.Tensor) -> paddle.Tensor:
        """Logits [N, V] in fp32."""
        weight = self.weight.astype("float32")
        logits = paddle.matmul(hidden_ND.astype("float32"), weight, transpose_y=self.transposed)
        return logits if self.bias is None else logits + self.bias.astype("float32")

    @property
    def vocab_size(self) -> int:
        """Rows or columns of the weight that is here."""
        return self.weight.shape[0 if self.transposed else 1]

    def cross_entropy(
        self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor, *, chunk_tokens: int, scale: float | None
    ) -> tuple[paddle.Tensor, paddle.Tensor]:
        """See `ops/cross_entropy.py`."""
        return linear_cross_entropy(
            hidden_ND,
            self.weight,
            self.bias,
            labels_N,
            transposed=self.transposed,
            chunk_tokens=chunk_tokens,
            # Inside a PyLayer gradients are always off, so what is wanted is asked here.
            wanted=paddle.is_grad_enabled(),
            scale=scale,
        )

    def log_probabilities(
        self, hidden_ND: paddle.Tensor, labels_N: paddle.Tensor, *, chunk_tokens: int
    ) -> paddle.Tensor:
        """See `ops/log_probabilities.py`."""
        return linear_log_probabilities(
            hidden_ND,
            self.weight,
            self.bias,
            labels_N,
            transposed=self.transposed,
            chunk_tokens=chunk_tokens,
        )


def chunked_cross_entropy(
    hidden_ND: paddle.Tensor,
    head: Head,
    labels_N: paddle.Tensor,
    *,
    chunk_tokens: int,
    only_labelled: bool = True,
    scale: float | None = None,
) -> tuple[paddle.Tensor, dict[str, float]]:
    """Negative log-likelihood summed over the positions whose label is not -100.

    Without any such position the loss is 0 and so is every gradient.

    Args:
        labels_N: int64 token ids, or -100 where nothing is to be predicted.
        chunk_tokens: positions whose logits are held at once (fewer where these were more than
            `MAX_LOGITS` numbers); the result does not depend on it beyond rounding.
        only_labelled: gather the labelled positions before the head where they are few enough for that to
            pay; the result is the same, what is computed at the others is wasted.
        scale: the loss is multiplied by it. Told here rather than by a product outside, it saves a pass
            over the gradient of the head, and a second buffer of its size when gradients of several
            batches are summed: `backward` must then follow, or the gradients be cleared.

    Returns:
        The sum in nats (times `scale`), an fp32 scalar, and `num_tokens` and `num_correct` (greedy
        prediction right).
    """
    num_tokens = int((labels_N != IGNORED).sum())
    if only_labelled and num_tokens < GATHER_BELOW * labels_N.shape[0]:
        positions = paddle.nonzero(labels_N != IGNORED).flatten()
        hidden_ND, labels_N = paddle.gather(hidden_ND, positions), paddle.gather(labels_N, positions)
    chunk_tokens = max(1, min(chunk_tokens, MAX_LOGITS // head.vocab_size))
    loss, num_correct = head.cross_entropy(hidden_ND, labels_N, chunk_tokens=chunk_tokens, scale=scale)
    return loss, {"num_tokens": float(num_tokens), "num_correct": float(num_correct)}
