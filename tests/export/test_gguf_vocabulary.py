"""Vocabularies of GGUF files, of both kinds of tokenizer."""

import json
from pathlib import Path

import pytest

from erniekit.errors import UnsupportedError
from erniekit.export.gguf_vocabulary import CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, read_vocabulary
from erniekit.testing.tiny_checkpoint import SPECIALS, write_tiny_checkpoint
from tests.data.makers import sentencepiece_tokenizer


def change(folder: Path, **changes: object) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_byte_level_bpe(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    found = read_vocabulary(folder, 266)
    assert (found.model, found.splitter, found.merges, found.scores) == ("gpt2", "gpt-2", [], [])
    assert tuple(found.tokens[:7]) == SPECIALS and found.kinds[:7] == [CONTROL] * 7
    assert found.kinds[7:263] == [NORMAL] * 256 and found.tokens[263:] == ["[PAD263]", "[PAD264]", "[PAD265]"]
    assert found.kinds[263:] == [UNUSED] * 3 and len(found.tokens) == len(found.kinds) == 266


def test_how_texts_are_cut_needs_a_name(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    change(folder, pre_tokenizer={"type": "Sequence", "pretokenizers": [digits, byte_level]})
    assert read_vocabulary(folder, 264).splitter == "smollm"
    for changes in (
        {"pre_tokenizer": {**byte_level, "use_regex": False}},
        {"pre_tokenizer": byte_level, "normalizer": {"type": "NFC"}},
    ):
        change(folder, **changes)
        with pytest.raises(UnsupportedError, match="way of cutting texts.*copy_tokenizer: false"):
            read_vocabulary(folder, 264)


def test_merges_are_written_as_texts(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["ab"] = 263
    change(folder, model={**content["model"], "merges": [["a", "b"]]})
    found = read_vocabulary(folder, 264)
    assert found.merges == ["a b"] and found.tokens[263] == "ab" and found.kinds[263] == NORMAL


def test_sentencepiece(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer(tmp_path / "sp")
    found = read_vocabulary(tokenizer.folder, 1005)
    assert found.model == "llama" and found.splitter is None and not found.merges
    assert len(found.tokens) == len(found.kinds) == len(found.scores) == 1005
    assert found.kinds.count(UNKNOWN) == 1 and found.kinds[1003:] == [UNUSED] * 2
    assert found.tokens[1001:1003] == ["<|begin_of_sentence|>", "<think>"]
    assert found.kinds[1001:1003] == [CONTROL, USER_DEFINED]
    assert found.kinds[tokenizer.eos_id or 0] == CONTROL
    text = "\u2581" if found.adds_space else ""
    ids = tokenizer.encode("abc")
    assert "".join(found.tokens[index] for index in ids).startswith(text)


def test_a_vocabulary_that_is_larger_than_the_model(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    with pytest.raises(UnsupportedError, match="263 tokens and the model 200"):
        read_vocabulary(folder, 200)
