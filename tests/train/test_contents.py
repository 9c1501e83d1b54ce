"""What checkpoints of full training and of adapters hold."""

import json
from pathlib import Path

import pytest

from erniekit import assemble
from erniekit.adapters.lora import resolve_scaling
from erniekit.checkpoint.adapter_files import open_adapter
from erniekit.checkpoint.files import write_tensors
from erniekit.config.config import Config
from erniekit.data.tokenizer import load_tokenizer
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.export import export_model
from erniekit.models.registry import read_vision_tokens
from erniekit.testing.tiny_checkpoint import tiny_moe_config, write_tiny_checkpoint
from erniekit.train.contents import base_name, checkpoint_contents

BUILD = {
    "continue_training": True,
    "compute_type": "fp32",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "freeze": (),
}


def keys(**changes):
    section = vars(Config().lora) | changes
    return {key: value for key, value in section.items() if key != "lora_path"}


def write(folder: Path, built, source: Path) -> Path:
    contents = checkpoint_contents(built, load_tokenizer(source), source, str(source))
    folder.mkdir()
    write_tensors(
        folder, contents.items(), max_shard_bytes=10**9, metadata={"format": "pt"}, basename=contents.basename
    )
    contents.write_files(folder)
    return folder


def build(
    source: Path, method: str = "LoRA", start: Path | None = None, compute_type: str = "fp32", **changes
):
    adaptation = assemble.Adaptation(keys(**changes), start)
    return assemble.build_model(
        source, adaptation, fine_tuning=method, **{**BUILD, "compute_type": compute_type}
    )


def test_full_training_writes_a_model(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    built = assemble.build_model(source, fine_tuning="Full", **BUILD)
    folder = write(tmp_path / "full", built, source)
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= {path.name for path in folder.iterdir()}
    assert (folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()


def test_a_model_that_was_made_for_a_tower_still_asks_for_it(tmp_path: Path) -> None:
    """Its placeholders are refused in what was trained of it as in the model itself."""
    numbers = tiny_moe_config(2, im_patch_id=7)
    source = write_tiny_checkpoint(tmp_path / "model", numbers)
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"vision_config": {"depth": 2}}))
    folder = write(tmp_path / "full", assemble.build_model(source, fine_tuning="Full", **BUILD), source)
    assert json.loads((folder / "config.json").read_text("utf-8"))["vision_config"] == {"depth": 2}
    assert read_vision_tokens(folder).needs_tower
    exported = export_model(folder, tmp_path, export_layout="paddle").folder
    assert read_vision_tokens(exported).needs_tower


@pytest.mark.parametrize("method", ["LoRA", "DoRA", "PiSSA", "lora"])
def test_an_adapter_is_written_alone(tmp_path: Path, method: str) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    built = build(source, method)
    folder = write(tmp_path / "adapter", built, source)
    names = {path.name for path in folder.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= names
    assert not {"model.safetensors", "config.json"} & names
    assert built.num_trained < built.num_parameters / 3
    adapter = open_adapter(folder)
    assert adapter.settings.base == str(source.resolve())
    assert adapter.facts["fingerprint"] == built.fingerprint
    again = build(source, method, folder)
    for (name, one), (_, two) in zip(
        built.model.named_parameters(), again.model.named_parameters(), strict=True
    ):
        assert bool((one == two).all()), name
    # Used unmerged, it needs no other word than its own folder.
    used = assemble.load_for_inference(folder, compute_type="fp32")
    assert used.adapter is not None and used.num_trained == 0
    assert assemble.take_off(used).adapter is None


def test_an_adapter_of_other_weights_is_refused(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    folder = write(tmp_path / "adapter", build(source), source)
    for use in (
        lambda: build(other, start=folder),
        lambda: assemble.load_for_inference(other, [folder], compute_type="fp32"),
    ):
        with pytest.raises(CheckpointError, match="was trained on other weights .*name the model"):
            use()
    with pytest.raises(CheckpointError, match=f"holds an adapter and no model.*lora_path={folder}"):
        assemble.build_model(folder, fine_tuning="Full", **BUILD)


def test_the_layout_of_the_base_does_not_matter(tmp_path: Path) -> None:
    from erniekit.models.ernie45.weights import open_weights
    from erniekit.models.registry import read_model_config

    source = write_tiny_checkpoint(tmp_path / "model")
    folder = write(tmp_path / "adapter", build(source), source)
    paddle = tmp_path / "paddle"
    paddle.mkdir()
    (paddle / "config.json").write_bytes((source / "config.json").read_bytes())
    items = open_weights(source, read_model_config(source)).layout_items("paddle")
    write_tensors(paddle, items, max_shard_bytes=10**9, metadata={})
    assert assemble.load_for_inference(paddle, [folder], compute_type="fp32").adapter is not None


def test_names_of_bases(tmp_path: Path) -> None:
    assert base_name(tmp_path, str(tmp_path)) == str(tmp_path.resolve())
    assert base_name(tmp_path, "baidu/ERNIE-4.5-0.3B-PT") == "baidu/ERNIE-4.5-0.3B-PT"


def test_settings_tell_peft_the_scale(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    folder = write(tmp_path / "adapter", build(source, rslora_plus=True, lora_rank=4), source)
    content = json.loads((folder / "adapter_config.json").read_text())
    assert (content["lora_alpha"], content["use_rslora"], content["r"]) == (4, True, 4)
    given = {"lora_rank": 4, "lora_alpha": -1, "rslora": False, "lora_plus_scale": 1.0}
    assert resolve_scaling(**given, rslora_plus=True)[2] == 4.0


def test_an_adapter_that_chooses_nothing_is_refused(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    with pytest.raises(ConfigError, match="lora_target: 'wq' matches no matrix"):
        build(source, lora_target=("wq",))
