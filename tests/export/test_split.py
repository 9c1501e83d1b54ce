from pathlib import Path

import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.errors import CheckpointError
from erniekit.export.split import split_model
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


def test_split_changes_no_bit_and_copies_what_belongs_to_the_model(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "checkpoint-3")
    for name in ("trainer_state.json", "optimizer.safetensors", "erniekit.yaml"):
        (source / name).touch()
    folder = split_model(source, tmp_path, max_shard_size="20KB")
    assert folder == tmp_path / "split_export"
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 3
    before, after = open_tensors(source), open_tensors(folder)
    assert sorted(before.names()) == sorted(after.names())
    assert before.metadata == after.metadata
    for name in before.names():
        assert before.read(name).tobytes() == after.read(name).tobytes()
    others = {path.name for path in folder.iterdir() if path.suffix != ".safetensors"}
    assert others == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_split_joins_shards_again(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    shards = split_model(source, tmp_path / "a", max_shard_size="20KB")
    joined = split_model(shards, tmp_path / "b", max_shard_size=1)
    assert [path.name for path in joined.glob("*.safetensors*")] == ["model.safetensors"]
    before, after = open_tensors(source), open_tensors(joined)
    assert all(before.read(name).tobytes() == after.read(name).tobytes() for name in before.names())


def test_split_again_needs_overwrite(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    (source / "preprocessor_config.json").write_text("{}")
    split_model(source, tmp_path, max_shard_size="20KB")
    with pytest.raises(CheckpointError, match="overwrite_output_dir=true"):
        split_model(source, tmp_path, max_shard_size=1)
    folder = split_model(source, tmp_path, True, max_shard_size=1)
    assert (folder / "model.safetensors").exists()
    assert not (folder / "model.safetensors.index.json").exists()


def test_an_adapter_is_told_what_to_do_first(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="an adapter and no model; `erniekit export .* merges"):
        split_model(tmp_path, tmp_path / "out")
