import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.data.tokenizer import StreamDecoder, load_tokenizer
from erniekit.errors import CheckpointError
from tests.data.makers import json_tokenizer, sentencepiece_tokenizer


@pytest.fixture(
    scope="module", params=[json_tokenizer, sentencepiece_tokenizer], ids=["json", "sentencepiece"]
)
def tokenizer(request, tmp_path_factory):
    return request.param(tmp_path_factory.mktemp("tokenizer"))


# Surrogates are no text, and U+2581 is how SentencePiece itself writes a space; all else must come back.
TEXT = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\x00\u2581"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.one_of(TEXT, st.sampled_from(["</s>", "<|end_of_sentence|>", "🙂", "é"])), max_size=6)
)
def test_a_stream_gives_the_text_in_whole_characters(tokenizer, parts):
    ids = tokenizer.encode("".join(parts))
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in ids]
    assert "".join([*pieces, decoder.flush()]) == tokenizer.decode(ids)
    if "\ufffd" not in "".join(parts):
        assert not any("\ufffd" in piece for piece in pieces)


def test_half_of_a_pair_is_refused_by_its_name(tokenizer):
    with pytest.raises(UnicodeEncodeError, match="surrogates not allowed"):
        tokenizer.encode("a \ud83d")
    assert tokenizer.decode(tokenizer.encode("a \U0001f642")) == "a \U0001f642"


def test_the_files_are_enough_to_make_it_again(tokenizer, tmp_path):
    for path in tokenizer.files():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    again = load_tokenizer(tmp_path)
    text = "hello <|end_of_sentence|> \u4f60\u597d</s>"
    assert again.encode(text) == tokenizer.encode(text) and again.special_tokens == tokenizer.special_tokens


def test_special_tokens_are_one_token(tokenizer):
    ids = tokenizer.encode("hello</s><|end_of_sentence|>")
    assert ids[-2:] == [tokenizer.eos_id, tokenizer.token_id("<|end_of_sentence|>")]
    assert set(ids[-2:]) <= tokenizer.special_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hello"
    assert tokenizer.token_id("no such token, surely") is None


def test_added_tokens_keep_their_ids(tmp_path):
    tokenizer = sentencepiece_tokenizer(tmp_path / "sp")
    assert tokenizer.encode("<|begin_of_sentence|><think>") == [1001, 1002]
    assert tokenizer.vocab_size == 1003
    assert 1002 not in tokenizer.special_ids and 1000 in tokenizer.special_ids


def test_of_added_tokens_that_begin_alike_the_longest_is_meant(tmp_path):
    folder = sentencepiece_tokenizer(tmp_path / "sp").folder
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for index, token in enumerate(["<mask:1", "<mask:1>", "<mask:1>>"], start=2000):
        settings["added_tokens_decoder"][str(index)] = {"content": token, "special": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(folder).encode("<mask:1>><mask:1<mask:1>") == [2002, 2000, 2001]


def test_a_folder_without_a_tokenizer_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="neither tokenizer.json nor tokenizer.model"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer.json cannot be read"):
        load_tokenizer(tmp_path)
