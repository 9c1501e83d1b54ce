"""What training sees of a row."""

import hashlib
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


@dataclass(frozen=True)
class PairSample(Sample):
    """A prompt with two answers in one sequence, see `pairs.py`.

    Attributes:
        chosen_start, rejected_start: where the branches begin, each with the last token of the prompt.
        score_difference: how much better the chosen answer is.
    """

    chosen_start: int
    rejected_start: int
    score_difference: float

    def position_ids(self) -> np.ndarray:
        """int64 [T]: both branches go on from the prompt."""
        positions = np.arange(len(self))
        positions[self.rejected_start :] -= self.rejected_start - self.chosen_start
        return positions

    def key(self) -> str:
        """A name that no other tokens and answers have."""
        digest = hashlib.blake2b(digest_size=16)
        starts = np.array([self.chosen_start, self.rejected_start], dtype=np.int64)
        for array in (starts, self.input_ids.astype(np.int32), self.labels.astype(np.int32)):
            digest.update(array.tobytes())
        return digest.hexdigest()

    def chosen(self) -> Sample:
        """The chosen answer behind the prompt, alone."""
        return self._branch(self.chosen_start, self.rejected_start)

    def rejected(self) -> Sample:
        """The rejected answer behind the prompt, alone."""
        return self._branch(self.rejected_start, len(self))

    def _branch(self, start: int, stop: int) -> Sample:
        shared = slice(0, self.chosen_start)
        ids = np.concatenate([self.input_ids[shared], self.input_ids[start:stop]])
        return Sample(ids, np.concatenate([self.labels[shared], self.labels[start:stop]]), self.origin)

    def cut(self, chosen: int, rejected: int) -> "PairSample":
        """The first `chosen` and `rejected` tokens of the branches."""
        first, second = self.chosen_start + chosen, self.rejected_start + rejected
        kept = np.r_[0:first, self.rejected_start : second]
        return PairSample(
            self.input_ids[kept],
            self.labels[kept],
            self.origin,
            chosen_start=self.chosen_start,
            rejected_start=first,
            score_difference=self.score_difference,
        )


def make_pair(
    chosen: tuple[list[int], list[int]],
    rejected: tuple[list[int], list[int]],
    score_difference: float,
    origin: str,
) -> PairSample:
    """A pair from two whole sequences, each with the label or -100 of its tokens (not shifted).

    What both begin with is shared, up to the first label of either.
    """
    shared = 0
    for one, two, *targets in zip(chosen[0], rejected[0], chosen[1], rejected[1], strict=False):
        if one != two or targets != [IGNORED, IGNORED]:
            break
        shared += 1
    assert shared, "answers without a prompt"
    head = chosen[0][: shared - 1]
    ids, labels, starts = list(head), [IGNORED] * len(head), []
    for side_ids, targets in (chosen, rejected):
        starts.append(len(ids))
        # What comes after the last label predicts nothing.
        last = max(index for index, target in enumerate(targets) if target != IGNORED)
        ids += side_ids[shared - 1 : last]
        labels += targets[shared : last + 1]
    return PairSample(
        np.array(ids, dtype=np.int32),
        np.array(labels, dtype=np.int32),
        origin,
        chosen_start=starts[0],
        rejected_start=starts[1],
        score_difference=score_difference,
    )
