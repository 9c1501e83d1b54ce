"""GGUF files of tiny models, read by the `gguf` package."""

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.files import Item, open_tensors
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.export import gguf_file
from erniekit.export.gguf_file import Speech, write_gguf
from erniekit.export.gguf_numbers import NUMBERS
from erniekit.export.gguf_vocabulary import CONTROL, NORMAL, Vocabulary
from erniekit.export.source import open_source
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config, write_tiny_checkpoint

gguf = pytest.importorskip("gguf")
# Largest error relative to the largest number of a tensor.
BOUNDS = {"fp32": 0, "fp16": 2**-11, "bf16": 2**-8, "q8_0": 0.006, "q6_k": 0.006, "q4_k": 0.05, "q4_0": 0.13}


def items(folder: Path) -> Iterator[Item]:
    return open_source(folder).items("F32")


def tensors(path: Path) -> dict[str, np.ndarray]:
    found = gguf.GGUFReader(path).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in found}


def field(path: Path, name: str) -> Any:
    found = gguf.GGUFReader(path).fields.get(name)
    return found and found.contents()


@pytest.mark.parametrize("word", NUMBERS)
def test_a_dense_model_in_every_type(tmp_path: Path, word: str) -> None:
    config = tiny_config(tie_word_embeddings=False)
    folder, path = write_tiny_checkpoint(tmp_path / "model", config), tmp_path / "model.gguf"
    written = write_gguf(path, config, items(folder), word, name="tiny", speech=None)
    found, given = tensors(path), open_tensors(folder)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
        "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
        "model.layers.1.mlp.up_proj.weight": "blk.1.ffn_up.weight",
        "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
        "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
        "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
        "lm_head.weight": "output.weight",
    }
    for name, stored in names.items():
        expected = given.read(name)
        bound = 0 if expected.ndim == 1 else BOUNDS[word] * np.abs(expected).max()
        assert found[stored].shape == expected.shape
        assert np.abs(found[stored] - expected).max() <= bound
    assert len(found) == 2 * 9 + 3 == sum(written.types.values())
    assert written.num_parameters == config.num_parameters()
    assert field(path, "general.architecture") == "ernie4_5"
    assert field(path, "ernie4_5.rope.freq_base") == config.rope_theta
    assert field(path, "ernie4_5.attention.key_length") == 16
    assert field(path, "tokenizer.ggml.model") == "no_vocab"


def test_a_mixture_of_experts(tmp_path: Path) -> None:
    config = tiny_moe_config(num_nextn_predict_layers=1)
    folder, path = write_tiny_checkpoint(tmp_path / "model", config), tmp_path / "model.gguf"
    written = write_gguf(path, config, items(folder), "fp32", name="tiny", speech=None)
    found, given = tensors(path), open_tensors(folder)
    layer = "model.layers.2.mlp"
    for name, stored in (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down")):
        experts = [given.read(f"{layer}.experts.{expert}.{name}.weight") for expert in range(4)]
        np.testing.assert_array_equal(found[f"blk.2.ffn_{stored}_exps.weight"], np.stack(experts))
        shared = given.read(f"{layer}.shared_experts.{name}.weight")
        np.testing.assert_array_equal(found[f"blk.2.ffn_{stored}_shexp.weight"], shared)
    np.testing.assert_array_equal(found["blk.2.ffn_gate_inp.weight"], given.read(f"{layer}.gate.weight"))
    bias = given.read(f"{layer}.moe_statics.e_score_correction_bias")
    np.testing.assert_array_equal(found["blk.2.exp_probs_b.bias"], bias[0])
    assert not any("mtp" in name or "blk.3" in name for name in found)
    assert written.num_parameters < config.num_parameters()
    numbers = {
        **{"expert_count": 4, "expert_used_count": 2, "leading_dense_block_count": 1},
        **{"expert_feed_forward_length": 24, "expert_shared_count": 2, "interleave_moe_layer_step": 1},
        **{"expert_shared_feed_forward_length": 48, "feed_forward_length": 48, "block_count": 3},
    }
    assert {name: field(path, f"ernie4_5-moe.{name}") for name in numbers} == numbers


def test_vocabulary_and_template(tmp_path: Path) -> None:
    config = tiny_config()
    folder, path = write_tiny_checkpoint(tmp_path / "model", config), tmp_path / "model.gguf"
    words = Vocabulary("llama", ["</s>", "a"], [CONTROL, NORMAL], scores=[0.0, -1.0], adds_space=False)
    speech = Speech(words, (2, 6), "{{ messages }}")
    write_gguf(path, config, items(folder), "fp16", name="tiny", speech=speech)
    names = {
        **{"model": "llama", "tokens": ["</s>", "a"], "token_type": [3, 1], "scores": [0.0, -1.0]},
        **{"bos_token_id": 1, "eos_token_id": 2, "eot_token_id": 6, "padding_token_id": 0},
        **{"add_bos_token": False, "add_eos_token": False, "add_space_prefix": False, "merges": None},
    }
    assert {name: field(path, f"tokenizer.ggml.{name}") for name in names} == names
    assert field(path, "tokenizer.chat_template") == "{{ messages }}"


def test_a_tensor_that_reads_back_differently_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config()
    folder = write_tiny_checkpoint(tmp_path / "model", config)
    reader = gguf.GGUFReader

    def damaged(path: str) -> Any:
        with open(path, "r+b") as file:
            file.seek(-40, 2)
            file.write(b"\xff")
        return reader(path)

    monkeypatch.setattr(gguf, "GGUFReader", damaged)
    with pytest.raises(CheckpointError, match="reads back differently"):
        write_gguf(tmp_path / "x.gguf", config, items(folder), "fp32", name="tiny", speech=None)


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *others: Any, **settings: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return imported(name, *others, **settings)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UnsupportedError, match=r"pip install 'erniekit\[gguf\]'"):
        gguf_file.require_gguf()
