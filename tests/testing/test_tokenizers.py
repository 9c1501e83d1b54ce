"""The tokenizers that other tests are made with: complete, and the same every time."""

import pytest

from erniekit.data.tokenizer import load_tokenizer
from erniekit.testing.tokenizers import SPECIALS, json_tokenizer, sentencepiece_tokenizer


@pytest.mark.parametrize("make", [json_tokenizer, sentencepiece_tokenizer])
def test_they_are_whole_folders_and_the_same_every_time(make, tmp_path):
    first, second = make(tmp_path / "a"), make(tmp_path / "b")
    text = "hello \U0001f642 <|end_of_sentence|></s>"
    assert first.encode(text) == second.encode(text) == load_tokenizer(tmp_path / "a").encode(text)
    assert first.decode(first.encode(text)) == text
    assert None not in (first.bos_id, first.eos_id, first.pad_id)


def test_special_tokens_have_fixed_ids(tmp_path):
    tokenizer = json_tokenizer(tmp_path / "json", chat_template="x")
    assert [tokenizer.token_id(token) for token in SPECIALS] == list(range(len(SPECIALS)))
    assert tokenizer.chat_template == "x"
    added = sentencepiece_tokenizer(tmp_path / "sp")
    assert added.token_id("<|end_of_sentence|>") == 1000
