"""Adapters out to files and back, in both formats."""

import json
from pathlib import Path

import numpy as np
import pytest

from erniekit.adapters import lora, state
from erniekit.adapters.dora import DoraLinear
from erniekit.adapters.layers import LoraLinear
from erniekit.adapters.pissa import PissaLinear
from erniekit.checkpoint.adapter_files import PADDLE_BASENAME, PEFT_BASENAME, PEFT_CONFIG, open_adapter
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, ConfigError
from tests.adapters import models

METHODS = [LoraLinear, DoraLinear, PissaLinear]


def save(applied: lora.Applied, folder: Path, **facts: str) -> Path:
    folder.mkdir(exist_ok=True)
    items = state.state_items(applied)
    write_tensors(folder, items, max_shard_bytes=10**9, metadata={}, basename=PEFT_BASENAME)
    state.write_settings(applied, folder, facts)
    return folder


def save_paddle(applied: lora.Applied, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    items = state.paddle_items(applied)
    write_tensors(folder, items, max_shard_bytes=10**9, metadata={}, basename=PADDLE_BASENAME)
    state.write_paddle_settings(applied, folder, {}, base=None, dtype="float32")
    return folder


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keys", [{}, {"rslora": True}, {"lora_target": ["v_proj", "q_proj", "down_proj"]}])
def test_attached_from_a_file_it_is_the_same(tmp_path: Path, method, keys) -> None:
    model = models.dense(use_bias=True)
    applied = models.apply(model, method, **keys)
    models.disturb(applied)
    expected = models.logits(model)
    folder = save(applied, tmp_path / "adapter")
    other = models.dense(use_bias=True)
    plain = models.logits(other)
    again = state.attach_file(other, models.layout(other), open_adapter(folder))
    models.near(models.logits(other), expected)
    assert not [name for name in again.names() if ".lora_" in name]
    lora.detach(again)
    np.testing.assert_array_equal(models.logits(other), plain)


@pytest.mark.parametrize("method", METHODS)
def test_training_goes_on_with_the_same_bits(tmp_path: Path, method) -> None:
    model = models.build(models.tiny_config(), dtype="bf16")
    applied = models.apply(model, method)
    models.disturb(applied)
    folder = save(applied, tmp_path / "adapter")
    other = models.build(models.tiny_config(), dtype="bf16")
    again = lora.apply(other, models.layout(other), method, **models.DEFAULTS)
    state.load(again, open_adapter(folder))
    before, after = dict(model.named_parameters()), dict(other.named_parameters())
    assert list(before) == list(after)
    for name in before:
        np.testing.assert_array_equal(before[name].numpy(), after[name].numpy(), err_msg=name)
    np.testing.assert_array_equal(models.logits(model), models.logits(other))


def test_names_and_shapes_are_those_of_peft(tmp_path: Path) -> None:
    applied = models.apply(models.dense(), lora_rank=3)
    tensors = open_tensors(save(applied, tmp_path / "a"), PEFT_BASENAME)
    assert len(tensors.names()) == 2 * 7 * 2
    first = "base_model.model.model.layers.0."
    # hidden 32, 4 heads and 2 key heads of 16, intermediate 48.
    for name, shape in {
        "self_attn.q_proj.lora_A.weight": (3, 32),
        "self_attn.q_proj.lora_B.weight": (64, 3),
        "self_attn.k_proj.lora_B.weight": (32, 3),
        "mlp.up_proj.lora_B.weight": (48, 3),
        "mlp.down_proj.lora_A.weight": (3, 48),
    }.items():
        assert tensors.info(first + name).shape == shape
    content = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert content["peft_type"] == "LORA" and content["r"] == 3 and content["lora_alpha"] == 6
    assert set(content["target_modules"]) == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }


def test_target_modules_of_some_layers_are_whole_names(tmp_path: Path) -> None:
    applied = models.apply(models.dense(), lora_target=[r"layers\.1\..*o_proj", "q_proj"])
    save(applied, tmp_path / "a")
    content = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert set(content["target_modules"]) == {"q_proj", "model.layers.1.self_attn.o_proj"}


def test_experts_by_number(tmp_path: Path) -> None:
    model = models.moe()
    applied = models.apply(model, lora_target=["experts", "router", "o_proj"])
    models.disturb(applied)
    expected = models.logits(model)
    folder = save(applied, tmp_path / "a")
    names = open_tensors(folder, PEFT_BASENAME).names()
    assert "base_model.model.model.layers.1.mlp.experts.3.gate_proj.lora_A.weight" in names
    assert "base_model.model.model.layers.1.mlp.gate.lora_B.weight" in names
    other = models.moe()
    state.attach_file(other, models.layout(other), open_adapter(folder))
    models.near(models.logits(other), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_whole_modules(tmp_path: Path, tied: bool) -> None:
    words = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    model = models.dense(tie_word_embeddings=tied)
    applied = models.apply(model, lora_modules_to_save=words)
    models.disturb(applied)
    expected = models.logits(model)
    folder = save(applied, tmp_path / "a")
    tensors = open_tensors(folder, PEFT_BASENAME)
    assert tensors.info("base_model.model.model.embed_tokens.weight").shape == (264, 32)
    if not tied:
        assert tensors.info("base_model.model.lm_head.weight").shape == (264, 32)
    other = models.dense(tie_word_embeddings=tied)
    plain = models.logits(other)
    again = state.attach_file(other, models.layout(other), open_adapter(folder))
    models.near(models.logits(other), expected)
    lora.detach(again)
    np.testing.assert_array_equal(models.logits(other), plain)
    third = models.dense(tie_word_embeddings=tied)
    fresh = models.apply(third)
    with pytest.raises(ConfigError, match="lora_modules_to_save none"):
        state.load(fresh, open_adapter(folder))


@pytest.mark.parametrize(
    ("words", "modules"),
    [
        (["qkv_proj"], ["q_proj", "k_proj", "v_proj"]),
        ([r"layers\.0\..*o_proj"], ["model.layers.0.self_attn.o_proj"]),
        (["model.norm", "down_proj"], ["down_proj", "model.norm"]),
    ],
)
def test_whole_modules_of_the_blocks(tmp_path: Path, words: list[str], modules: list[str]) -> None:
    """They are named as files name them, and have no factors."""
    model = models.dense(use_bias=True)
    applied = models.apply(model, lora_modules_to_save=words)
    assert not {f"{name}.weight" for name in applied.layers} & set(applied.saved)
    models.disturb(applied)
    expected = models.logits(model)
    folder = save(applied, tmp_path / "a")
    assert json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))["modules_to_save"] == modules
    other = models.dense(use_bias=True)
    again = state.attach_file(other, models.layout(other), open_adapter(folder))
    models.near(models.logits(other), expected)
    assert set(again.saved) == set(applied.saved)


@pytest.mark.parametrize("method", [LoraLinear, PissaLinear])
@pytest.mark.parametrize("keys", [{}, {"rslora": True}, {"lora_target": ["k_proj", "o_proj"]}])
def test_paddles_format_holds_the_same_adapter(tmp_path: Path, method, keys) -> None:
    model = models.dense()
    applied = models.apply(model, method, **keys)
    models.disturb(applied)
    expected = models.logits(model)
    folder = save_paddle(applied, tmp_path / "paddle")
    names = open_tensors(folder, PADDLE_BASENAME).names()
    assert "ernie.layers.0.self_attn.qkv_proj.lora_A" in names
    other = models.dense()
    state.attach_file(other, models.layout(other), open_adapter(folder))
    models.near(models.logits(other), expected)


def test_a_fused_pair_is_shared_by_its_pieces(tmp_path: Path) -> None:
    """An adapter as PaddleFormers trains it: one pair for the fused matrix; read, it adds A B scale."""
    random = np.random.default_rng(2)
    a = random.normal(size=(32, 2)).astype(np.float32)
    b = random.normal(size=(2, 128)).astype(np.float32)
    items = [
        ("ernie.layers.0.self_attn.qkv_proj.lora_A", "F32", a),
        ("ernie.layers.0.self_attn.qkv_proj.lora_B", "F32", b),
    ]
    write_tensors(tmp_path, items, max_shard_bytes=10**9, metadata={}, basename=PADDLE_BASENAME)
    (tmp_path / "lora_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 3, "rslora": False}))
    model = models.dense()
    before = model.model.layers[0].self_attn.qkv_proj.weight.numpy()
    applied = state.attach_file(model, models.layout(model), open_adapter(tmp_path))
    lora.merge(applied)
    after = model.model.layers[0].self_attn.qkv_proj.weight.numpy()
    np.testing.assert_allclose(after, before + 1.5 * a @ b, atol=1e-5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lora_rank": 8}, "rank 4, and lora_rank is 8; write lora_rank: 4"),
        ({"lora_alpha": 2}, "scale is 2.*give 0.5; write lora_alpha: 8"),
        ({"lora_target": ["q_proj", "o_proj", "k_proj"]}, "nothing for .*k_proj"),
        ({"lora_target": ["q_proj"]}, "factors for .*o_proj.*lora_target does not choose"),
    ],
)
def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, keys, message: str) -> None:
    folder = save(models.apply(models.dense(), lora_target=["q_proj", "o_proj"]), tmp_path / "a")
    other = models.apply(models.dense(), **{"lora_target": ["q_proj", "o_proj"], **keys})
    with pytest.raises((ConfigError, CheckpointError), match=message):
        state.load(other, open_adapter(folder))


def test_an_adapter_of_another_method_is_refused(tmp_path: Path) -> None:
    folder = save(models.apply(models.dense(), PissaLinear), tmp_path / "a")
    with pytest.raises(ConfigError, match="made by PiSSA, and fine_tuning is LoRA; write fine_tuning: PiSSA"):
        state.load(models.apply(models.dense()), open_adapter(folder))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = save(models.apply(models.dense()), tmp_path / "a")
    smaller = models.dense(num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"layers\.1\..*this model does not have"):
        state.attach_file(smaller, models.layout(smaller), open_adapter(folder))
    wider = models.dense(hidden_size=48)
    with pytest.raises(CheckpointError, match=r"\[32, 64\], which this model does not have"):
        state.attach_file(wider, models.layout(wider), open_adapter(folder))
