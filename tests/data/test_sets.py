"""What rows turn into, and how each that does not is counted."""

import json

import numpy as np
import pytest

from erniekit.errors import DataError
from tests.data.makers import samples


def test_overlong_samples_are_cut_dropped_or_refused_and_counted(tokenizer, data):
    cut = samples(tokenizer, data, max_seq_len=40).report
    assert cut.truncated > 0 and max(cut.lengths) == 40
    dropped = samples(tokenizer, data, max_seq_len=40, overlong="drop").report
    assert dropped.too_long > 0 and dropped.samples + dropped.too_long == 53
    with pytest.raises(DataError, match=r"train set.jsonl:\d+: \d+ tokens, more than max_seq_len: 40"):
        _ = samples(tokenizer, data, max_seq_len=40, overlong="error").report


def test_bad_rows_stop_or_are_listed(tokenizer, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"src": "a", "tgt": "b"}\n{"src": "a"}\nnonsense\n{"src": "c", "tgt": "d"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:\d: .*skip_bad_rows"):
        _ = samples(tokenizer, path).report
    report = samples(tokenizer, path, skip_bad_rows=True).report
    assert (report.rows, report.samples, report.bad) == (4, 2, 2)
    assert any("bad.jsonl:2: tgt is missing" in row for row in report.bad_rows)
    assert any("bad.jsonl:3: not valid JSON" in row for row in report.bad_rows)


def test_data_without_a_trained_token_is_an_error(tokenizer, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text('{"src": "a", "tgt": "b", "label": [0]}\n')
    with pytest.raises(DataError, match="no token of the training data is trained on"):
        _ = samples(tokenizer, path).report


def test_pretraining_cuts_long_texts_and_ends_each(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "abcdefgh" * 40}) + "\n" + json.dumps({"text": "xy"}) + "\n")
    found = samples(tokenizer, path, stage="PT", max_seq_len=64, random_shuffle=False)
    pieces = found.samples(0, 0)
    whole = tokenizer.encode("abcdefgh" * 40) + [tokenizer.eos_id]
    assert np.concatenate([piece.input_ids for piece in pieces]).tolist() == whole[:-1]
    assert np.concatenate([piece.labels for piece in pieces]).tolist() == whole[1:]
    assert found.samples(0, 1)[0].labels[-1] == tokenizer.eos_id


def test_half_of_a_pair_is_a_bad_row(tokenizer, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"src": "a", "tgt": "b \\ud83d"}\n{"src": "a", "tgt": "b \\ud83d\\ude00"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1: holds U\+D83D, half of a pair"):
        _ = samples(tokenizer, path).report
    report = samples(tokenizer, path, skip_bad_rows=True).report
    assert (report.bad, report.samples) == (1, 1)


def test_an_answer_with_the_end_in_it_is_told(tokenizer, tmp_path, caplog):
    path = tmp_path / "a.jsonl"
    path.write_text('{"src": "a", "tgt": "b<|im_end|>c"}\n' * 2)
    with caplog.at_level("WARNING", logger="erniekit"):
        assert samples(tokenizer, path).report.samples == 2
    told = [record for record in caplog.records if "the token that ends an answer" in record.getMessage()]
    assert len(told) == 1


def test_a_text_too_short_to_predict_in_is_counted(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "q"}\n{"text": "long enough"}\n')
    monkeypatch.setattr(tokenizer, "eos_id", None)
    report = samples(tokenizer, path, stage="PT").report
    assert (report.rows, report.empty, report.samples) == (2, 1, 1)
    assert any("1 rows are too short" in line for line in report.lines())
