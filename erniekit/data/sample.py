"""What training sees of a row."""

from dataclasses import dataclass

import numpy as np

IGNORED = -100


@dataclass(frozen=True)
class Sample:
    """A sequence and what is to be predicted at each of its positions.

    Attributes:
        input_ids: int32 [T].
        labels: int32 [T], already shifted: the token to predict after position t, or -100.
        origin: `file:line` of the row.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    origin: str

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_trained(self) -> int:
        """Number of positions that are trained on."""
        return int((self.labels != IGNORED).sum())


def make_sample(ids: list[int], targets: list[int], origin: str) -> Sample:
    """A sample from a whole sequence and, for each of its tokens, the label or -100 (not shifted)."""
    return Sample(np.array(ids[:-1], dtype=np.int32), np.array(targets[1:], dtype=np.int32), origin)
