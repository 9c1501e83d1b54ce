"""Exports of a tiny model: what is in them, that they are proven, and what is refused."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.checkpoint.manifest import write_manifest
from erniekit.data.tokenizer import load_tokenizer
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export import export as module
from erniekit.export.export import export_model
from erniekit.models.ernie45.weights import load_weights
from erniekit.testing.tiny_checkpoint import TEMPLATE, tiny_config, write_tiny_checkpoint

HIDDEN, INNER, QUERY, KEY, VOCAB = 32, 48, 64, 32, 264


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("source") / "model")


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    tensors = open_tensors(folder)
    return {name: tensors.info(name).shape for name in tensors.names()}


def digest(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_hf_layout_has_the_names_and_shapes_of_transformers(source: Path, tmp_path: Path) -> None:
    exported = export_model(source, tmp_path)
    assert exported.folder == tmp_path / "export"
    assert exported.compared.difference == 0.0
    found = shapes(exported.folder)
    block = {
        "input_layernorm": (HIDDEN,),
        "self_attn.q_proj": (QUERY, HIDDEN),
        "self_attn.k_proj": (KEY, HIDDEN),
        "self_attn.v_proj": (KEY, HIDDEN),
        "self_attn.o_proj": (HIDDEN, QUERY),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    expected = {f"model.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in block.items()}
    expected |= {"model.embed_tokens.weight": (VOCAB, HIDDEN), "model.norm.weight": (HIDDEN,)}
    assert found == expected
    assert open_tensors(exported.folder).metadata == {"format": "pt"}
    config = read_json(exported.folder / "config.json")
    assert config["architectures"] == ["Ernie4_5ForCausalLM"]
    assert (config["model_type"], config["head_dim"], config["rope_theta"]) == ("ernie4_5", 16, 500000.0)
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500000.0}
    assert config["torch_dtype"] == "float32" and "dtype" not in config


def test_paddle_layout_has_the_names_and_shapes_of_fastdeploy(source: Path, tmp_path: Path) -> None:
    folder = export_model(source, tmp_path, export_layout="paddle", export_dtype="bf16").folder
    found = shapes(folder)
    block = {
        "input_layernorm": (HIDDEN,),
        "self_attn.qkv_proj": (HIDDEN, QUERY + 2 * KEY),
        "self_attn.o_proj": (QUERY, HIDDEN),
        "post_attention_layernorm": (HIDDEN,),
        "mlp.up_gate_proj": (HIDDEN, 2 * INNER),
        "mlp.down_proj": (INNER, HIDDEN),
    }
    expected = {f"ernie.layers.{n}.{name}.weight": shape for n in range(2) for name, shape in block.items()}
    expected |= {"ernie.embed_tokens.weight": (VOCAB, HIDDEN), "ernie.norm.weight": (HIDDEN,)}
    assert found == expected
    assert {open_tensors(folder).info(name).dtype for name in found} == {"BF16"}
    assert open_tensors(folder).metadata == {"format": "np"}
    config = read_json(folder / "config.json")
    assert config["architectures"] == ["Ernie4_5_ForCausalLM"]
    assert config["dtype"] == "bfloat16" and "torch_dtype" not in config


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_there_and_back_gives_the_same_bits(tmp_path: Path, tied: bool, bias: bool) -> None:
    config = tiny_config(tie_word_embeddings=tied, use_bias=bias)
    source = write_tiny_checkpoint(tmp_path / "source", config)
    paddle = export_model(source, tmp_path, export_layout="paddle", export_dir=str(tmp_path / "p")).folder
    back = export_model(paddle, tmp_path, export_layout="hf", export_dir=str(tmp_path / "b")).folder
    before, after = open_tensors(source), open_tensors(back)
    assert sorted(before.names()) == sorted(after.names())
    for name in before.names():
        np.testing.assert_array_equal(before.read(name), after.read(name))


@pytest.mark.parametrize(("word", "bound"), [("bf16", 2.0**-8), ("fp16", 2.0**-11)])
def test_rounded_exports_are_rounded_once_and_say_by_how_much(
    source: Path, tmp_path: Path, word: str, bound: float
) -> None:
    exported = export_model(source, tmp_path, export_dtype=word)
    assert 0.0 < exported.compared.difference < 0.1 * exported.compared.largest
    assert f"{exported.compared.difference:.3g}" in (exported.folder / "README.md").read_text()
    wide = export_model(exported.folder, tmp_path, export_dtype="fp32", export_dir=str(tmp_path / "wide"))
    assert wide.compared.difference == 0.0
    before, after = open_tensors(source), open_tensors(wide.folder)
    for name in before.names():
        np.testing.assert_allclose(after.read(name), before.read(name), rtol=bound, atol=1e-7)


def test_shards_stay_below_the_limit_and_have_an_index(source: Path, tmp_path: Path) -> None:
    folder = export_model(source, tmp_path, max_shard_size="40KB").folder
    weights = sorted(folder.glob("*.safetensors"))
    assert len(weights) > 2
    assert all(path.stat().st_size < 40_000 + 2_000 for path in weights)
    index = read_json(folder / "model.safetensors.index.json")
    assert set(index["weight_map"].values()) == {path.name for path in weights}
    assert weights[0].name == f"model-00001-of-{len(weights):05d}.safetensors"


def test_tokenizer_template_and_ends_come_along(source: Path, tmp_path: Path) -> None:
    folder = export_model(source, tmp_path).folder
    assert (folder / "chat_template.jinja").read_text() == TEMPLATE
    assert read_json(folder / "tokenizer_config.json")["chat_template"] == TEMPLATE
    assert (folder / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    end_of_turn = load_tokenizer(source).token_id("<|end|>")
    generation = read_json(folder / "generation_config.json")
    assert generation["eos_token_id"] == [2, end_of_turn]
    assert generation["do_sample"] is False


def test_copy_tokenizer_false_leaves_it_out(source: Path, tmp_path: Path) -> None:
    folder = export_model(source, tmp_path, copy_tokenizer=False).folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_model_without_a_tokenizer_needs_none(source: Path, tmp_path: Path) -> None:
    bare = write_tiny_checkpoint(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="copy_tokenizer=false"):
        export_model(bare, tmp_path)
    assert not (tmp_path / "export").exists()
    folder = export_model(bare, tmp_path, copy_tokenizer=False).folder
    assert read_json(folder / "generation_config.json")["eos_token_id"] == 2


def test_template_of_the_run_goes_with_the_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    checkpoint = write_tiny_checkpoint(run / "checkpoint-3", template=None)
    chosen = tmp_path / "mine.jinja"
    chosen.write_text(TEMPLATE + "{# mine #}")
    (checkpoint / "trainer_state.json").write_text(json.dumps({"step": 3, "progress": {}}))
    (run / "erniekit.yaml").write_text(f"chat_template: {chosen}\nlearning_rate: 0.25\n")
    folder = export_model(checkpoint, run).folder
    assert (folder / "chat_template.jinja").read_text().endswith("{# mine #}")
    assert "| `learning_rate` | 0.25 |" in (folder / "README.md").read_text()
    assert not (folder / "trainer_state.json").exists()


def test_taken_destination_is_left_alone_and_replaced_on_request(source: Path, tmp_path: Path) -> None:
    first = export_model(source, tmp_path)
    before = digest(first.folder)
    with pytest.raises(CheckpointError, match="overwrite_output_dir=true"):
        export_model(source, tmp_path, export_dtype="bf16")
    assert digest(first.folder) == before
    export_model(source, tmp_path, True, export_dtype="bf16")
    assert digest(first.folder) != before


def test_damaged_source_is_named(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    write_manifest(source)
    content = bytearray((source / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (source / "model.safetensors").write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="model.safetensors is damaged"):
        export_model(source, tmp_path)
    assert os.listdir(tmp_path) == ["source"]


def test_export_that_differs_never_gets_its_name(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof finds one wrong number in one tensor, and a wrong number in config.json."""
    true_write = module.write_tensors

    def flipped(folder: Path, items: Any, **options: Any) -> list[Path]:
        files = true_write(folder, items, **options)
        content = bytearray(files[0].read_bytes())
        content[-2] ^= 1
        files[0].write_bytes(bytes(content))
        return files

    monkeypatch.setattr(module, "write_tensors", flipped)
    with pytest.raises(CheckpointError, match="model.norm.weight reads back differently"):
        export_model(source, tmp_path)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    true_content = module.config_content
    monkeypatch.setattr(
        module,
        "config_content",
        lambda *args: {**true_content(*args), "rope_theta": 1.0, "rope_parameters": {}},
    )
    with pytest.raises(CheckpointError, match="reads back as another model"):
        export_model(source, tmp_path)
    assert os.listdir(tmp_path) == []


def test_logits_that_differ_are_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_logits = module.probe_logits
    monkeypatch.setattr(
        module,
        "probe_logits",
        lambda folder, *rest: true_logits(folder, *rest) * (1.0 if folder == source else 1.001),
    )
    with pytest.raises(CheckpointError, match="logits of probe texts differ"):
        export_model(source, tmp_path)
    assert os.listdir(tmp_path) == []


def test_unknown_words_are_refused(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="export_dtype: int8 .*auto, fp32, bf16, fp16"):
        export_model(source, tmp_path, export_dtype="int8")
    with pytest.raises(ConfigError, match="export_layout: onnx .*hf, paddle"):
        export_model(source, tmp_path, export_layout="onnx")


def test_export_loads_as_the_same_model(source: Path, tmp_path: Path) -> None:
    folder = export_model(source, tmp_path, export_layout="paddle").folder
    config = tiny_config()
    for (name, _, array), (other, _, again) in zip(
        load_weights(source, config), load_weights(folder, config), strict=True
    ):
        assert name == other
        np.testing.assert_array_equal(array, again)
