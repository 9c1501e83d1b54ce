"""Multi-token prediction: what its blocks are to predict, and how their losses make one.

The block of depth d predicts, at position t, the token at t + d + 1 (depth 0 would be next-token
prediction). A position takes part where that token is trained on and belongs to the same sample.

    L = lambda (1/D) sum_d (cross-entropy summed over depth d) / (its positions)

(DeepSeek-V3, section 2.2; the mean over D depths.) The loss counts in what is reported; released code
adds its gradient only.

    B rows, T positions, D depths
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

IGNORED = -100


def labels_ahead(labels_BT: np.ndarray, attend_from_BT: np.ndarray, depth: int) -> np.ndarray:
    """Labels [B, T] of the block of a depth (from 1 on); -100 where the row or the sample ends before.

    Args:
        labels_BT: of next-token prediction: at t the token t + 1, or -100.
        attend_from_BT: first position of the sample that a position belongs to.
    """
    ahead = np.full_like(labels_BT, IGNORED)
    if depth < labels_BT.shape[1]:
        same = attend_from_BT[:, depth:] == attend_from_BT[:, :-depth]
        ahead[:, :-depth] = np.where(same, labels_BT[:, depth:], IGNORED)
    return ahead


def count_ahead(batches: Sequence[tuple[np.ndarray, np.ndarray]], num_depths: int) -> list[int]:
    """Positions of each depth over the (labels, attend_from) of all micro-batches."""
    return [
        sum(int((labels_ahead(labels, starts, depth) != IGNORED).sum()) for labels, starts in batches)
        for depth in range(1, num_depths + 1)
    ]


def multi_token_loss(loss_sums: Sequence[Any], counts: Sequence[int]) -> Any:
    """Mean over the depths of loss sum / positions; a depth without positions adds 0.

    Args:
        loss_sums: cross-entropy of each depth summed over positions, of one micro-batch or of all.
        counts: positions of each depth in ALL micro-batches.
    """
    means = [total / max(count, 1) for total, count in zip(loss_sums, counts, strict=True)]
    return sum(means[1:], means[0]) / len(means)
