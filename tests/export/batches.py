"""Batches of pseudo-random tokens of the tiny model, two samples to a row."""

import numpy as np

from erniekit.data.pack import Batch


def batches(number: int = 2, columns: int = 24) -> list[Batch]:
    """Rows of two samples each; every token but the last of a sample has a label."""
    found = []
    for index in range(number):
        ids = np.random.default_rng(index).integers(0, 260, (2, columns))
        half = columns // 2
        positions = np.tile(np.concatenate([np.arange(half), np.arange(columns - half)]), (2, 1))
        starts = np.tile(np.repeat([0, half], [half, columns - half]), (2, 1)).astype(np.int32)
        labels = np.roll(ids, -1, axis=1)
        labels[:, [half - 1, -1]] = -100
        found.append(Batch(ids, labels, positions, starts, 2 * columns, [["x:1"], ["x:2"]]))
    return found
