"""Which tokens end an answer."""

from pathlib import Path

import pytest

from erniekit.data.template import ChatTemplate, load_template
from erniekit.data.tokenizer import Tokenizer, load_tokenizer
from erniekit.generate.ends import end_of_turn_id, end_token_ids
from erniekit.testing.tiny_checkpoint import SPECIALS, tiny_config, write_tiny_checkpoint

END = SPECIALS.index("<|end|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_tiny_checkpoint(tmp_path_factory.mktemp("ends") / "model"))


def template(source: str, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate(source, "test", tokenizer.special_tokens)


def test_all_four_places_are_asked(tokenizer: Tokenizer) -> None:
    own = load_template(tokenizer, chat_template=None)
    config = tiny_config(eos_token_id=(1, 2))
    assert end_token_ids({"eos_token_id": [3, 4]}, config, tokenizer, own) == [1, 2, 3, 4, END]
    assert end_token_ids({"eos_token_id": 5}, tiny_config(eos_token_id=None), tokenizer, None) == [2, 5]
    assert end_token_ids({}, tiny_config(), None, None) == [2]


def test_end_of_turn_is_the_first_special_token_behind_an_answer(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ '\n' }}<|end|>{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    assert end_of_turn_id(tokenizer, template(source, tokenizer)) == END


def test_template_that_ends_with_plain_text_has_none(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}. {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    assert end_of_turn_id(tokenizer, template(source, tokenizer)) is None
    assert end_of_turn_id(tokenizer, None) is None


def test_folder_path_is_not_needed(tmp_path: Path) -> None:
    bare = load_tokenizer(write_tiny_checkpoint(tmp_path / "bare", template=None))
    assert end_token_ids({}, tiny_config(), bare, load_template(bare, chat_template=None)) == [2]
