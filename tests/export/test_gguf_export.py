"""Exports as GGUF: the folder, its card, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.export.export import export_model
from erniekit.export.gguf_export import ExportedGguf
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.testing.tiny_checkpoint import TEMPLATE, tiny_config, tiny_moe_config, write_tiny_checkpoint

gguf = pytest.importorskip("gguf")


def export(source: Path, output: Path, dtype: str = "auto", **settings: Any) -> ExportedGguf:
    found = export_model(source, output, export_layout="gguf", export_dtype=dtype, **settings)
    assert isinstance(found, ExportedGguf)
    return found


@pytest.mark.parametrize("config", [tiny_config(), tiny_moe_config(num_nextn_predict_layers=1)])
def test_a_folder_with_one_file_and_a_card(tmp_path: Path, config: Ernie45Config) -> None:
    source = write_tiny_checkpoint(tmp_path / "model", config)
    exported = export(source, tmp_path, "q8_0")
    assert sorted(path.name for path in exported.folder.iterdir()) == ["README.md", "model-q8_0.gguf"]
    card = (exported.folder / "README.md").read_text()
    assert "q8_0, GGUF; exported by ErnieKit" in card and "llama-cli -m" in card
    assert exported.describe() in card and "Q8_0" in exported.describe()
    fields = gguf.GGUFReader(exported.file).fields
    assert fields["tokenizer.chat_template"].contents() == TEMPLATE
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    # The template's end of a turn ends an answer too.
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 2
    assert fields["tokenizer.ggml.eot_token_id"].contents() == 6


def test_auto_keeps_the_type_of_the_source(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    exported = export(source, tmp_path)
    assert exported.file.name == "model-fp32.gguf" and exported.written.types == {"F32": 20}
    narrow = export_model(source, tmp_path, True, export_dtype="bf16", export_dir=str(tmp_path / "narrow"))
    assert export(narrow.folder, tmp_path / "b").dtype == "bf16"
    again = export_model(narrow.folder, tmp_path / "b", True, export_layout="gguf", export_dtype="q8_0")
    assert [path.name for path in again.folder.glob("*.gguf")] == ["model-q8_0.gguf"]


def test_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink()
    with pytest.raises(CheckpointError, match="copy_tokenizer=false"):
        export(source, tmp_path, "fp16")
    assert not (tmp_path / "export").exists()
    exported = export(source, tmp_path, "fp16", copy_tokenizer=False)
    assert gguf.GGUFReader(exported.file).fields["tokenizer.ggml.model"].contents() == "no_vocab"


def test_what_is_refused(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match="export_dtype: q4_0 is not known; write one of auto, fp32, bf16"):
        export_model(source, tmp_path, export_dtype="q4_0")
    with pytest.raises(ConfigError, match="export_dtype: q3_k .*q8_0, q4_0"):
        export(source, tmp_path, "q3_k")
    with pytest.raises(ConfigError, match="merge_adapter: false .*gguf has no place"):
        export(source, tmp_path, merge_adapter=False)
    biased = write_tiny_checkpoint(tmp_path / "biased", tiny_config(use_bias=True))
    with pytest.raises(UnsupportedError, match="use_bias"):
        export(biased, tmp_path)
