"""Pairs as sequences: shared prompt, labels, positions, cutting; and as batches."""

import json

import numpy as np
import pytest

from erniekit.data.pack import collate
from erniekit.data.report import DataReport
from erniekit.data.sample import IGNORED, PairSample, make_pair
from erniekit.data.show import sample_text
from tests.data.makers import reader, samples

ROW = {"prompt": "What is it?", "chosen": "A cat.", "rejected": "No idea, sorry."}


def read(tokenizer, row=ROW, **changes):
    report = DataReport()
    found = reader(tokenizer, "DPO", **changes).read("alpaca", row, "f:1", report)
    return (found[0] if found else None), report


def sft(tokenizer, answer):
    row = {"instruction": ROW["prompt"], "output": answer}
    return reader(tokenizer, "SFT").read("alpaca", row, "f:1")[0]


def test_each_answer_is_what_sft_would_train_on(tokenizer):
    pair, _ = read(tokenizer)
    for side, answer in ((pair.chosen(), ROW["chosen"]), (pair.rejected(), ROW["rejected"])):
        alone = sft(tokenizer, answer)
        length = len(side)
        assert side.input_ids.tolist() == alone.input_ids[:length].tolist()
        assert side.labels.tolist() == alone.labels[:length].tolist()
        # What is left out behind the last label predicts nothing.
        assert (alone.labels[length:] == IGNORED).all()


def test_the_prompt_is_there_once(tokenizer):
    pair, _ = read(tokenizer)
    sides = pair.chosen(), pair.rejected()
    assert len(pair) == sum(map(len, sides)) - pair.chosen_start
    assert (pair.labels[: pair.chosen_start] == IGNORED).all()
    heads = pair.input_ids[[pair.chosen_start, pair.rejected_start]]
    assert heads[0] == heads[1], "both branches begin with the last token of the prompt"
    assert pair.labels[pair.chosen_start] != IGNORED and pair.labels[pair.rejected_start] != IGNORED


def test_positions_go_on_from_the_prompt():
    pair = make_pair(([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 6, 9], [-100, -100, 9]), 1.0, "f:1")
    assert pair.input_ids.tolist() == [5, 6, 7, 6]
    assert pair.labels.tolist() == [-100, 7, 8, 9]
    assert pair.position_ids().tolist() == [0, 1, 2, 1]
    assert (pair.chosen_start, pair.rejected_start) == (1, 3)


def test_answers_that_begin_alike_share_only_the_prompt():
    pair = make_pair(([5, 6, 7, 8], [-100, -100, 7, 8]), ([5, 6, 7], [-100, -100, 7]), 1.0, "f:1")
    assert pair.chosen_start == 1 and pair.labels.tolist() == [-100, 7, 8, 7]


def test_prompts_that_differ_at_their_ends_are_context_of_their_branches():
    """As with reasoning in one of the answers only."""
    pair = make_pair(([5, 6, 3, 7], [-100] * 3 + [7]), ([5, 6, 4, 9], [-100] * 3 + [9]), 1.0, "f:1")
    assert pair.input_ids.tolist() == [5, 6, 3, 6, 4]
    assert pair.labels.tolist() == [-100, -100, 7, -100, 9]
    assert pair.chosen().input_ids.tolist() == [5, 6, 3] and pair.rejected().input_ids.tolist() == [5, 6, 4]


def test_last_token_may_be_left_out(tokenizer):
    whole, _ = read(tokenizer)
    short, _ = read(tokenizer, ignore_eos_token=True)
    for with_end, without in ((whole.chosen(), short.chosen()), (whole.rejected(), short.rejected())):
        assert without.labels.tolist() == with_end.labels[:-1].tolist()


def test_too_long(tokenizer):
    whole, _ = read(tokenizer)
    limit = len(whole) - 6
    cut, report = read(tokenizer, max_seq_len=limit)
    assert len(cut) == limit and report.truncated == 1 and report.too_long == 0
    assert cut.chosen().labels.tolist() == whole.chosen().labels.tolist(), "the longer one is cut first"
    assert cut.rejected().input_ids.tolist() == whole.rejected().input_ids[:-6].tolist()
    assert cut.position_ids()[cut.rejected_start] == cut.chosen_start
    none, report = read(tokenizer, max_seq_len=whole.chosen_start + 1)
    assert none is None and report.too_long == 1
    none, report = read(tokenizer, max_seq_len=limit, overlong="drop")
    assert none is None and report.too_long == 1


def test_pairs_without_preference_are_counted(tokenizer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    rows = [ROW, {**ROW, "rejected": ROW["chosen"]}, {**ROW, "prompt": "And this?"}]
    path.write_text("\n".join(map(json.dumps, rows)))
    report = samples(tokenizer, path, stage="DPO").report
    assert (report.rows, report.samples, report.undecided) == (3, 2, 1)
    assert any("1 pairs that prefer neither" in line for line in report.lines())


def test_without_a_template(tokenizer):
    pair, _ = read(tokenizer, use_template=False)
    assert tokenizer.decode(pair.chosen().input_ids.tolist()) == "What is it?\nA cat."
    assert pair.chosen().labels[-1] == tokenizer.eos_id


def test_batch(tokenizer):
    one, _ = read(tokenizer)
    two, _ = read(tokenizer, {**ROW, "chosen": "A dog?", "chosen_score": 4, "rejected_score": 1})
    batch = collate([(one, two), (two,)], pad_id=0)
    width = batch.input_ids.shape[1]
    assert batch.attend_from.shape == (2, width, 3)
    places = batch.pairs
    assert [place.row for place in places] == [0, 0, 1]
    assert [place.score_difference for place in places] == [1, 3, 3]
    assert places[1].key == places[2].key != places[0].key
    for place, pair in zip(places, (one, two, two), strict=True):
        start = place.chosen_start - pair.chosen_start
        columns = slice(start, place.stop)
        assert batch.input_ids[place.row, columns].tolist() == pair.input_ids.tolist()
        assert batch.position_ids[place.row, columns].tolist() == pair.position_ids().tolist()
        seen = batch.attend_from[place.row, columns]
        assert (seen[:, 0] == start).all()
        first = place.rejected_start - start
        assert not seen[:first, 1:].any()
        assert (seen[first:, 1:] == (place.chosen_start, place.rejected_start)).all()
    rest = batch.attend_from[1, len(two) :, 0]
    assert rest.tolist() == list(range(len(two), width))


def test_keys_are_those_of_the_tokens():
    one = make_pair(([5, 6, 7], [-100, -100, 7]), ([5, 6, 9], [-100, -100, 9]), 1.0, "a:1")
    same = make_pair(([5, 6, 7], [-100, -100, 7]), ([5, 6, 9], [-100, -100, 9]), 2.0, "b:2")
    swapped = make_pair(([5, 6, 9], [-100, -100, 9]), ([5, 6, 7], [-100, -100, 7]), 1.0, "a:1")
    assert one.key() == same.key() != swapped.key()


def test_shown(tokenizer):
    pair, _ = read(tokenizer)
    text = sample_text(pair, tokenizer, colours=False).plain
    assert "chosen: " in text and "[[A cat.<|im_end|>]]" in text and "[[No idea, sorry.<|im_end|>]]" in text


def test_a_conversation_that_goes_on(tokenizer):
    row = {"src": ["a"], "response": [["x", "and?", "z"], ["y"]], "sort": [2, 1]}
    pair = reader(tokenizer, "DPO").read("erniekit", row, "f:1")[0]
    assert isinstance(pair, PairSample)
    trained = pair.chosen().labels[pair.chosen().labels != IGNORED]
    assert tokenizer.decode(trained.tolist()) == "x<|im_end|>z<|im_end|>"


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_answers_are_bad_rows(tokenizer, text):
    none, report = read(tokenizer, {**ROW, "rejected": text}, skip_bad_rows=True)
    assert none is None and report.bad == 1 and "f:1: rejected must be a text" in report.bad_rows[0]


def test_ids_keep_their_types(tokenizer):
    pair, _ = read(tokenizer)
    assert pair.input_ids.dtype == pair.labels.dtype == np.int32
