"""Types of tokens from their ids, and labels that no placeholder is among."""

import numpy as np
import pytest

from erniekit.data.loader import Loader
from erniekit.data.pack import collate
from erniekit.data.sample import PairSample, Sample
from erniekit.data.vision_tokens import IMAGE, VIDEO, VisionTokens
from erniekit.errors import DataError
from tests.data.makers import json_tokenizer, loader, reader, samples

# Ids of the tokenizer under test that stand for vision tokens here; 5 and 7 open and close.
VISION = VisionTokens({5: IMAGE, 6: IMAGE, 7: VIDEO, 8: VIDEO}, frozenset({6, 8}))


def sample(*ids: int) -> Sample:
    return Sample(np.array(ids[:-1], np.int32), np.array(ids[1:], np.int32), "f:1")


def test_types_by_hand() -> None:
    types = VISION.types_of(np.array([[1, 5, 6, 6], [7, 8, 2, 0]]))
    assert types is not None and types.dtype == np.int64
    assert types.tolist() == [[0, 1, 1, 1], [2, 2, 0, 0]]


def test_text_has_no_types() -> None:
    assert VISION.types_of(np.array([[1, 2], [3, 4]])) is None
    assert VisionTokens().types_of(np.array([[5, 6]])) is None


def test_placeholders_are_not_predicted_but_marks_are() -> None:
    given = sample(1, 5, 6, 6, 7, 8, 2)
    masked = VISION.unpredicted(given)
    assert masked.labels.tolist() == [5, -100, -100, 7, -100, 2] and masked.labels.dtype == np.int32
    assert masked.input_ids is given.input_ids and given.labels.tolist() == [5, 6, 6, 7, 8, 2]
    text = sample(1, 2, 3)
    assert VISION.unpredicted(text) is text and VisionTokens().unpredicted(given) is given


def test_a_pair_stays_a_pair() -> None:
    ids = np.array([1, 2, 6, 2, 3], np.int32)
    pair = PairSample(ids, np.roll(ids, -1), "f:1", chosen_start=1, rejected_start=3, score_difference=1.0)
    masked = VISION.unpredicted(pair)
    assert isinstance(masked, PairSample) and masked.labels.tolist() == [2, -100, 2, 3, 1]
    assert masked.rejected_start == 3


def test_pictures_of_a_model_with_a_tower_are_refused() -> None:
    blind = VisionTokens(VISION.types, VISION.placeholders, needs_tower=True)
    assert blind.unpredicted(sample(1, 5, 7, 2)).labels.tolist() == [5, 7, 2]
    with pytest.raises(DataError, match="vision tower, which is not built yet"):
        blind.unpredicted(sample(1, 6, 2))


def test_a_batch_carries_types_only_where_it_has_vision_tokens() -> None:
    mixed = collate([(sample(1, 6, 2), sample(3, 4)), (sample(3, 2, 4),)], pad_id=0, vision=VISION)
    assert mixed.token_types is not None and mixed.token_types.tolist() == [[0, 1] + [0] * 6, [0] * 8]
    assert collate([(sample(3, 2, 4),)], pad_id=0, vision=VISION).token_types is None
    # Vision tokens alone: padding does not bring text in.
    alone = collate([(sample(6, 6, 2),), (sample(5, 8, 8, 2),)], pad_id=0, vision=VISION)
    assert alone.token_types is not None
    assert alone.token_types.tolist() == [[1] * 8, [1, 2] + [2] * 6]


def test_the_reader_the_loader_and_the_report(tmp_path) -> None:
    """From rows to batches: <|start_header_id|> (5) and [INST] (8) stand for placeholders here."""
    tokenizer = json_tokenizer(tmp_path / "tokenizer")
    vision = VisionTokens({5: IMAGE, 8: VIDEO}, frozenset({5, 8}))
    path = tmp_path / "rows.jsonl"
    text = '{"text": "hello [INST]<|start_header_id|> world"}\n{"text": "how are you"}\n'
    path.write_text(text)
    found = samples(tokenizer, path, stage="PT")
    plain = found.report.trained_tokens
    found = samples(tokenizer, path, stage="PT")
    found.reader.vision = vision
    assert found.report.trained_tokens == plain - 2
    made: Loader = loader(found, batch=1, accumulation=1, packing=False)
    batches = [batch for _ in range(2) for batch in made.next_step()]
    first, second = sorted(batches, key=lambda batch: batch.origins[0])
    assert second.token_types is None and first.token_types is not None
    kinds = {(int(i), int(t)) for i, t in zip(first.input_ids[0], first.token_types[0], strict=True) if t}
    assert kinds == {(5, IMAGE), (8, VIDEO)} and not {5, 8} & set(first.labels[0].tolist())


def test_a_refused_picture_names_its_row(tmp_path) -> None:
    tokenizer = json_tokenizer(tmp_path / "tokenizer")
    made = reader(tokenizer, stage="PT")
    made.vision = VisionTokens({8: IMAGE}, frozenset({8}), needs_tower=True)
    with pytest.raises(DataError, match=r"^f:7: a placeholder of a picture"):
        made.read("text", {"text": "hello [INST]"}, "f:7")
