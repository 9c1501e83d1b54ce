"""Probe texts are those of the file and the checkpoint's conversation, and always tokens of the model."""

from pathlib import Path

from erniekit.data.tokenizer import load_tokenizer
from erniekit.export.probe import probe_rows, probe_texts
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint

VOCAB = tiny_config().vocab_size


def test_texts_in_several_languages_and_the_conversation(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    texts = probe_texts()
    assert len(texts) == 8 and any("\n" in text for text in texts)
    assert sum(not text.isascii() for text in texts) == 4
    rows = probe_rows(folder, VOCAB, chat_template=None)
    assert len(rows) == 9 and all(0 < len(row) <= 32 for row in rows)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(rows[0]) == texts[0][-32:]
    assert tokenizer.decode(rows[-1]).endswith("France?<|end|><|assistant|>Paris.<|end|>")


def test_the_template_of_the_run_comes_first(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    own = tmp_path / "own.jinja"
    own.write_text("{% for message in messages %}[{{ message.content }}]{% endfor %}", encoding="utf-8")
    rows = probe_rows(folder, VOCAB, chat_template=str(own))
    assert load_tokenizer(folder).decode(rows[-1]).endswith("France?][Paris.]")


def test_without_a_template_or_a_tokenizer(tmp_path: Path) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model", template=None)
    assert len(probe_rows(folder, VOCAB, chat_template=None)) == 8
    own = tmp_path / "own.jinja"
    own.write_text("{{ raise_exception('no') }}", encoding="utf-8")
    assert len(probe_rows(folder, VOCAB, chat_template=str(own))) == 8
    for path in folder.glob("tokenizer*"):
        path.unlink()
    drawn = probe_rows(folder, VOCAB, chat_template=None)
    assert len(drawn) == 2 and all(0 <= token < VOCAB for row in drawn for token in row)
    assert probe_rows(write_tiny_checkpoint(tmp_path / "b"), 5, chat_template=None)
