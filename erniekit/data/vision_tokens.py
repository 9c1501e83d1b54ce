"""Which tokens are no text: placeholders of pictures and videos, and the marks around them.

A model for text and vision has experts of its own for these tokens, so a batch says the type of each.
The type follows from the id alone: 1 for an image's placeholder, 2 for a video's, and the marks that
open and close either count as what they enclose, as the released models route them. A placeholder
stands for what a vision tower sees, so no model is trained to write one; the marks it may learn.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from erniekit.data.sample import IGNORED, Sample
from erniekit.errors import DataError

IMAGE, VIDEO = 1, 2


@dataclass(frozen=True)
class VisionTokens:
    """The vision tokens of a model; without any all is text.

    Args:
        types: token id -> IMAGE or VIDEO.
        placeholders: those of them that stand for pictures.
        needs_tower: the model was made for what a vision tower gives in their place.
    """

    types: Mapping[int, int] = field(default_factory=dict)
    placeholders: frozenset[int] = frozenset()
    needs_tower: bool = False

    def types_of(self, ids: np.ndarray) -> np.ndarray | None:
        """int64 type of each token, 0 for text, in the shape of `ids`; None where all is text."""
        if not self.types or not np.isin(ids, list(self.types)).any():
            return None
        found = np.zeros(ids.shape, dtype=np.int64)
        for token, kind in self.types.items():
            found[ids == token] = kind
        return found

    def unpredicted(self, sample: Sample) -> Sample:
        """The sample with no placeholder among its labels.

        Raises:
            DataError: it holds placeholders of a model that needs its vision tower.
        """
        if not self.placeholders:
            return sample
        self.refuse(sample.input_ids)
        written = np.isin(sample.labels, list(self.placeholders))
        if not written.any():
            return sample
        return replace(sample, labels=np.where(written, np.int32(IGNORED), sample.labels))

    def refuse(self, ids: np.ndarray) -> None:
        """Raise DataError for placeholders whose pictures nothing can see."""
        if self.needs_tower and np.isin(ids, list(self.placeholders)).any():
            raise DataError(
                "a placeholder of a picture: this model sees pictures through its vision tower, which is not "
                "built yet; only text can be given to it"
            )
