"""What lies beside the weights."""

import json
from pathlib import Path

from erniekit.export.companions import write_companions, write_template
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint


def test_template_overrides_what_the_checkpoint_says_in_both_places(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>", "chat_template": "old"}')
    write_template(tmp_path, "new \u4f60")
    assert (tmp_path / "chat_template.jinja").read_text(encoding="utf-8") == "new \u4f60"
    content = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert content == {"eos_token": "</s>", "chat_template": "new \u4f60"}


def test_defaults_of_the_checkpoint_are_kept(tmp_path: Path) -> None:
    source, folder = write_tiny_checkpoint(tmp_path / "source"), tmp_path / "out"
    folder.mkdir()
    (source / "generation_config.json").write_text('{"temperature": 0.5, "pad_token_id": 7}')
    assert write_companions(source, folder, tiny_config(), copy_tokenizer=True, chat_template=None)
    content = json.loads((folder / "generation_config.json").read_text())
    assert content == {"bos_token_id": 1, "pad_token_id": 7, "temperature": 0.5, "eos_token_id": [2, 6]}


def test_model_without_a_template_gets_none(tmp_path: Path) -> None:
    source, folder = write_tiny_checkpoint(tmp_path / "source", template=None), tmp_path / "out"
    folder.mkdir()
    assert not write_companions(source, folder, tiny_config(), copy_tokenizer=True, chat_template=None)
    assert not (folder / "chat_template.jinja").exists()
    assert (folder / "tokenizer.json").exists()
