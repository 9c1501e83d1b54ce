"""Exports of adapters: merged, proven, refused over other weights; and what a source is made of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit import assemble
from erniekit.checkpoint.adapter_files import open_adapter
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, MissingModelError
from erniekit.export.export import export_model
from erniekit.export.proof import logits_of
from erniekit.export.source import open_source
from erniekit.testing.tiny_checkpoint import tiny_config, write_tiny_checkpoint
from tests.adapters.models import disturb
from tests.train.test_contents import build, write


def adapter(
    folder: Path, method: str = "LoRA", *, seed: int = 0, keys: dict[str, Any] | None = None, **numbers: Any
) -> tuple[Path, Path]:
    """A model and an adapter that has been trained for it; `keys` are those of `test_contents.build`."""
    source = write_tiny_checkpoint(folder / "model", tiny_config(**numbers), seed=seed)
    built = build(source, method, **(keys or {}))
    built.model.eval()
    disturb(built.adapter)
    return source, write(folder / "adapter", built, source)


def logits(folder: Path, *adapters: Path, scheme: str | None = None) -> np.ndarray:
    built = assemble.load_for_inference(folder, adapters, compute_type="fp32", scheme=scheme)
    return logits_of(built.model, np.arange(3, 33).reshape(2, 15))


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "PiSSA"])
def test_an_adapter_is_merged(tmp_path: Path, method: str) -> None:
    source, trained = adapter(tmp_path, method)
    exported = export_model(trained, tmp_path)
    assert exported.merged and 0.0 < exported.compared.difference < 1e-4 * exported.compared.largest
    assert "merged in fp32" in exported.describe()
    expected, plain = logits(trained), logits(source)
    found = logits(exported.folder)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() < 1e-5 * scale < np.abs(plain - expected).max()
    names = {path.name for path in exported.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert {"generation_config.json", "README.md"} <= names
    assert not [name for name in names if "adapter" in name]


@pytest.mark.parametrize("method", ["LoRA", "DoRA"])
def test_one_of_quantised_weights_is_merged_into_the_full_ones(tmp_path: Path, method: str) -> None:
    """The proof is against the full model with the adapter; how far the quantised one is is told."""
    _, trained = adapter(tmp_path, method, keys={"compute_type": "nf4"})
    exported = export_model(trained, tmp_path)
    assert exported.compared.difference < 1e-4 * exported.compared.largest
    found, quantised = logits(exported.folder), logits(trained, scheme="nf4")
    np.testing.assert_allclose(found, logits(trained), atol=1e-5 * np.abs(found).max())
    assert np.abs(found - quantised).max() > 1e-3 * np.abs(found).max()
    assert exported.to_quantised.difference > 100 * exported.compared.difference
    told = exported.describe()
    assert "trained on weights in nf4 and is merged into the full ones; from the model as it" in told
    assert str(exported.to_quantised) in told and told in (exported.folder / "README.md").read_text()
    alone = export_model(trained, tmp_path, export_dir=str(tmp_path / "alone"), merge_adapter=False)
    assert open_adapter(alone.folder).facts["scheme"] == "nf4"


def test_layout_and_type(tmp_path: Path) -> None:
    _, trained = adapter(tmp_path)
    exported = export_model(trained, tmp_path, export_layout="paddle", export_dtype="bf16")
    tensors = open_tensors(exported.folder)
    assert {dtype for _, dtype, _ in tensors.specs()} == {"BF16"}
    assert "ernie.layers.0.self_attn.qkv_proj.weight" in tensors.names()


def test_other_weights_are_refused(tmp_path: Path) -> None:
    _, trained = adapter(tmp_path)
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(CheckpointError, match="trained on other weights .*nobody trained"):
        export_model(other, tmp_path, False, trained)
    assert not (tmp_path / "export").exists()


def test_a_base_that_is_gone_can_be_named(tmp_path: Path) -> None:
    source, trained = adapter(tmp_path)
    moved = source.rename(tmp_path / "moved")
    with pytest.raises(MissingModelError, match=r"is an adapter of .*lora_path="):
        export_model(trained, tmp_path)
    exported = export_model(moved, tmp_path, False, trained)
    assert exported.merged


def test_tokenizer_of_the_base_where_the_adapter_has_none(tmp_path: Path) -> None:
    source, trained = adapter(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "manifest.json"):
        (trained / name).unlink(missing_ok=True)
    assert open_source(trained).companions == source
    assert (export_model(trained, tmp_path).folder / "tokenizer.json").is_file()


def test_a_model_is_its_own_source(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    found = open_source(source)
    assert (found.folder, found.adapter, found.companions) == (source, None, source)
    assert found.is_exact(None) and found.is_exact("F32") and not found.is_exact("BF16")
    tensors = open_tensors(source)
    write_tensors(tmp_path, tensors.items(), max_shard_bytes=10**9, metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
