import numpy as np

from erniekit.data.sample import Sample
from erniekit.data.show import decoded_runs, length_histogram, sample_text, visible
from tests.data.makers import json_tokenizer


def test_trained_tokens_are_green_and_the_last_label_shows(tmp_path):
    tokenizer = json_tokenizer(tmp_path)
    ids = tokenizer.encode("question answer</s>")
    cut = len(tokenizer.encode("question"))
    labels = [-100] * (cut - 1) + ids[cut:]
    sample = Sample(np.array(ids[:-1], np.int32), np.array(labels, np.int32), "f:1")
    text = sample_text(sample, tokenizer)
    green = "".join(text.plain[span.start : span.end] for span in text.spans if "green" in str(span.style))
    assert green == " answer</s>" and "f:1" in text.plain
    assert "more tokens" in sample_text(sample, tokenizer, most_tokens=2).plain
    count = len(ids) - cut
    assert f"{len(ids) - 1} tokens, {count} trained ({count / (len(ids) - 1):.0%})" in text.plain
    plain = sample_text(sample, tokenizer, colours=False)
    assert plain.plain.endswith("question[[ answer</s>]]") and "trained" in plain.plain


def test_data_cannot_steer_the_terminal(tmp_path):
    assert visible("a\x1b[2Jb\r\x9bc\td\n") == "a\\x1b[2Jb\\x0d\\x9bc\td\n"
    tokenizer = json_tokenizer(tmp_path)
    ids = np.array(tokenizer.encode("\x1b]0;title\x07 text"), np.int32)
    shown = sample_text(Sample(ids[:-1], ids[1:], "f:1"), tokenizer).plain
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b]0;title" in shown


def test_characters_of_several_tokens_are_decoded_together(tmp_path):
    tokenizer = json_tokenizer(tmp_path)
    ids = tokenizer.encode("\U0001f642")
    assert len(ids) > 1
    assert decoded_runs(ids, [True] * len(ids), tokenizer) == [("\U0001f642", True)]


def test_histogram():
    lines = length_histogram([1, 2, 3, 11, 12, 24], most_bars=3)
    assert [line.split()[:4] for line in lines] == [
        ["1", "-", "8", "3"],
        ["9", "-", "16", "2"],
        ["17", "-", "24", "1"],
    ]
    assert lines[0].count("#") == 3 * lines[2].count("#") + 1
    assert length_histogram([]) == []
