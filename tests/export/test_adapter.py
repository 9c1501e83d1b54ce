"""Adapters written alone: both formats are read back, one from the other, and what cannot be is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from erniekit.checkpoint.adapter_files import PADDLE_BASENAME, PEFT_BASENAME, open_adapter
from erniekit.checkpoint.files import open_tensors
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export import adapter as module
from erniekit.export.export import export_model
from tests.export.test_source import adapter, logits

FORMATS = {"hf": PEFT_BASENAME, "paddle": PADDLE_BASENAME}


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("method", ["LoRA", "PiSSA"])
def test_there_and_back(tmp_path: Path, method: str, layout: str) -> None:
    source, trained = adapter(tmp_path, method)
    words = {"merge_adapter": False, "export_layout": layout}
    first = export_model(trained, tmp_path, **words)
    assert first.compared.difference < 1e-5 * first.compared.largest
    assert "numbers in float32; on its model before and after" in first.describe()
    tensors = open_tensors(first.folder, FORMATS[layout])
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert (key if layout == "hf" else "ernie.layers.0.self_attn.qkv_proj.lora_A") in tensors.names()
    assert first.num_parameters == sum(np.prod(shape) for _, _, shape in tensors.specs())
    np.testing.assert_allclose(logits(first.folder), logits(trained), atol=1e-4)
    back = export_model(first.folder, tmp_path, export_dir=str(tmp_path / "back"), merge_adapter=False)
    np.testing.assert_allclose(logits(source, back.folder), logits(trained), atol=1e-4)
    # What it was trained on goes along, so that it is merged into nothing else.
    given, again = open_adapter(trained), open_adapter(back.folder)
    assert again.facts["fingerprint"] == given.facts["fingerprint"]
    assert again.settings.base == given.settings.base == str(source.resolve())
    merged = export_model(back.folder, tmp_path, export_dir=str(tmp_path / "merged"))
    np.testing.assert_allclose(logits(merged.folder), logits(trained), atol=1e-4)


def test_companions_and_settings_of_paddle(tmp_path: Path) -> None:
    _, trained = adapter(tmp_path)
    folder = export_model(trained, tmp_path, merge_adapter=False, export_layout="paddle").folder
    names = {path.name for path in folder.iterdir()}
    assert {"lora_config.json", "peft_model.safetensors", "tokenizer.json", "chat_template.jinja"} <= names
    assert not {"config.json", "model.safetensors", "adapter_config.json"} & names
    content = json.loads((folder / "lora_config.json").read_text())
    # Three pieces of q, k, v in one pair.
    rank = open_adapter(trained).settings.rank
    assert (content["r"], content["lora_alpha"]) == (3 * rank, 3 * open_adapter(trained).settings.alpha)
    assert content["dtype"] == "float32" and ".*qkv_proj" in content["target_modules"]


def test_rounded(tmp_path: Path) -> None:
    _, trained = adapter(tmp_path)
    found = export_model(trained, tmp_path, merge_adapter=False, export_dtype="bf16")
    assert found.dtype == "bfloat16" and 0.0 < found.compared.difference < 0.1 * found.compared.largest
    assert open_adapter(found.folder).dtype() == "BF16"


@pytest.mark.parametrize("layout", FORMATS)
def test_whole_modules_go_along(tmp_path: Path, layout: str) -> None:
    _, trained = adapter(tmp_path, keys={"lora_modules_to_save": ["embed_tokens"]})
    folder = export_model(trained, tmp_path, merge_adapter=False, export_layout=layout).folder
    assert "model.embed_tokens.weight" in open_adapter(folder).whole_tensors()
    np.testing.assert_allclose(logits(folder), logits(trained), atol=1e-4)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, trained = adapter(tmp_path, "DoRA")
    with pytest.raises(ConfigError, match="merge_adapter: false, and .* is a whole model"):
        export_model(source, tmp_path, merge_adapter=False)
    with pytest.raises(ConfigError, match="DoRA adapter stays in peft's"):
        export_model(trained, tmp_path, merge_adapter=False, export_layout="paddle")
    assert not (tmp_path / "export").exists()
    with pytest.raises(CheckpointError, match="holds the source"):
        export_model(trained, tmp_path, merge_adapter=False, export_dir=str(trained))
    true_logits = module.probe_logits
    monkeypatch.setattr(module, "probe_logits", lambda *given: true_logits(*given) * 1.01)
    with pytest.raises(CheckpointError, match="logits of probe texts differ"):
        export_model(trained, tmp_path, merge_adapter=False)
    assert not (tmp_path / "export").exists()


def test_an_earlier_export_is_replaced_when_asked(tmp_path: Path) -> None:
    _, trained = adapter(tmp_path)
    for layout in FORMATS:
        export_model(trained, tmp_path, True, merge_adapter=False, export_layout=layout)
    with pytest.raises(CheckpointError, match="overwrite_output_dir=true"):
        export_model(trained, tmp_path, merge_adapter=False)
