"""Packing and collating.

Packing puts several samples into one row of at most max_seq_len tokens by first-fit decreasing:
longest first, each into the first row that has room. No sample is cut, attention never leaves a
sample (`attend_from`), positions restart in each, so a packed row computes exactly what its
samples compute alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from erniekit.data.sample import IGNORED, PairSample, Sample
from erniekit.data.vision_tokens import VisionTokens


@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """How many rows the batches have."""

    per_device_train_batch_size: int
    per_device_eval_batch_size: int
    gradient_accumulation_steps: int


Pack = tuple[Sample, ...]
_ROUND_TO = 8


@dataclass(frozen=True)
class PairPlace:
    """Where a pair stands in a batch: columns [chosen_start, rejected_start) and [rejected_start, stop).

    `key` names its tokens, `score_difference` says how much better the chosen answer is.
    """

    row: int
    chosen_start: int
    rejected_start: int
    stop: int
    score_difference: float
    key: str


@dataclass(frozen=True)
class Batch:
    """A micro-batch of rows.

    Attributes:
        input_ids: int64 [B, T].
        labels: int64 [B, T], already shifted; -100 where nothing is predicted.
        position_ids: int64 [B, T], from 0 in each sample.
        attend_from: int32 [B, T], first column that each column may see; of pairs [B, T, 3], with the
            columns in between that it may not (see `ops/attention.py`).
        num_tokens: tokens that are no padding.
        origins: for each row the `file:line` of its samples.
        lengths: tokens of each row, what follows is padding; None where there is no padding.
        token_types: int64 [B, T], 0 for text, 1 and 2 for image and video; None for text alone.
        pairs: in the order of rows and columns; none but for preference data.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    position_ids: np.ndarray
    attend_from: np.ndarray
    num_tokens: int
    origins: list[list[str]]
    lengths: tuple[int, ...] | None = None
    token_types: np.ndarray | None = None
    pairs: tuple[PairPlace, ...] = ()

    def is_token(self) -> np.ndarray:
        """bool [B, T]: what is no padding."""
        width = self.input_ids.shape[1]
        lengths = self.lengths or (width,) * len(self.input_ids)
        return np.arange(width) < np.array(lengths)[:, None]


def pack(samples: Sequence[Sample], max_seq_len: int) -> list[Pack]:
    """First-fit decreasing; equal lengths keep their order, so the result is deterministic."""
    order = sorted(range(len(samples)), key=lambda index: -len(samples[index]))
    rows: list[list[Sample]] = []
    room: list[int] = []
    for index in order:
        sample = samples[index]
        for number, free in enumerate(room):
            if len(sample) <= free:
                rows[number].append(sample)
                room[number] -= len(sample)
                break
        else:
            rows.append([sample])
            room.append(max_seq_len - len(sample))
    return [tuple(row) for row in rows]


def collate(
    packs: Sequence[Pack],
    *,
    pad_id: int,
    pad_to: int | None = None,
    vision: VisionTokens | None = None,
    num_parts: int = 1,
) -> Batch:
    """Rows side by side, padded on the right to the longest one (rounded up to 8) or to `pad_to`.

    Args:
        vision: the tokens that are no text.
        num_parts: equal parts that the columns can be cut into.
    """
    longest = max(sum(map(len, row)) for row in packs)
    width = pad_to or -(-longest // _ROUND_TO) * _ROUND_TO
    width = -(-width // num_parts) * num_parts
    shape = (len(packs), width)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    attend_from = np.tile(np.arange(width, dtype=np.int32), (len(packs), 1))
    gaps = np.zeros((*shape, 2), dtype=np.int32)
    pairs: list[PairPlace] = []
    lengths = []
    for number, row in enumerate(packs):
        start = 0
        for sample in row:
            stop = start + len(sample)
            input_ids[number, start:stop] = sample.input_ids
            labels[number, start:stop] = sample.labels
            position_ids[number, start:stop] = np.arange(len(sample))
            attend_from[number, start:stop] = start
            if isinstance(sample, PairSample):
                place = _place(sample, number, start)
                pairs.append(place)
                position_ids[number, start:stop] = sample.position_ids()
                gaps[number, place.rejected_start : stop] = (place.chosen_start, place.rejected_start)
            start = stop
        lengths.append(start)
    origins = [[sample.origin for sample in row] for row in packs]
    if pairs:
        attend_from = np.concatenate([attend_from[..., None], gaps], axis=-1)
    return Batch(
        *(input_ids, labels, position_ids, attend_from, sum(lengths), origins, tuple(lengths)),
        token_types=_types(input_ids, lengths, vision or VisionTokens()),
        pairs=tuple(pairs),
    )


def _types(input_ids: np.ndarray, lengths: Sequence[int], vision: VisionTokens) -> np.ndarray | None:
    """Types of the tokens; padding is what comes before it, so that it brings no modality of its own."""
    types = vision.types_of(input_ids)
    if types is not None:
        for number, stop in enumerate(lengths):
            types[number, stop:] = types[number, stop - 1]
    return types


def _place(sample: PairSample, row: int, start: int) -> PairPlace:
    return PairPlace(
        row,
        start + sample.chosen_start,
        start + sample.rejected_start,
        start + len(sample),
        sample.score_difference,
        sample.key(),
    )
