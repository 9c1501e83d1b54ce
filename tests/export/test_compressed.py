"""The layout of compressed-tensors: bytes by hand, and numbers that come back."""

import json

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors
from erniekit.config.quantize import COMPRESSED
from erniekit.errors import UnsupportedError
from erniekit.export.compressed import FORMS, numbers_of, pack_words
from erniekit.quant.folder import read_matrix, read_quantisation
from erniekit.quant.schemes import SCHEMES
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.quant.folders import quantised_folder

CONFIGS = {
    "dense": lambda: tiny_config(
        hidden_size=128, intermediate_size=128, num_attention_heads=4, num_key_value_heads=4, head_dim=32
    ),
    "experts": lambda: tiny_moe_config(moe_num_shared_experts=1),
}
LAYOUT = {"quant_layout": "compressed-tensors"}


def test_the_schemes_that_say_so():
    assert tuple(name for name in SCHEMES if "compressed-tensors" in SCHEMES[name].layouts) == COMPRESSED
    assert {format for name in COMPRESSED for format in SCHEMES[name].used()} == set(FORMS)


def test_words_by_hand():
    four = np.array([[1, 2, 3, 4, 5, 6, 7, 8, 15]], np.uint8)
    np.testing.assert_array_equal(pack_words(four, 4).view(np.uint32), [[0x87654321, 0xF]])
    eight = np.array([[0, 255, 128, 1]], np.uint8)
    np.testing.assert_array_equal(pack_words(eight, 8).view(np.uint32), [[0x0180FF00]])


@pytest.mark.parametrize("scheme", COMPRESSED)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_numbers_are_those_of_our_own_folder(tmp_path, kind, scheme):
    if (kind, scheme) == ("experts", "fp8_block"):
        with pytest.raises(UnsupportedError, match="cut through blocks of 128"):
            quantised_folder(tmp_path, CONFIGS[kind](), quant_scheme=scheme, quant_method="rtn", **LAYOUT)
        return
    keys = {"quant_scheme": scheme, "quant_method": "rtn"}
    _, ours = quantised_folder(tmp_path, CONFIGS[kind](), **keys)
    there = str(tmp_path / "compressed")
    _, theirs = quantised_folder(tmp_path, CONFIGS[kind](), **keys, **LAYOUT, quant_dir=there)
    assert theirs.quality == ours.quality and not (tmp_path / "compressed.blocks").exists()
    tensors, formats = open_tensors(theirs.folder), ours.quantisation.formats
    name = "model.layers.0.self_attn.qkv_proj.weight"
    own = read_matrix(
        open_tensors(ours.folder),
        formats[name],
        _shape(kind),
        [("ernie.layers.0.self_attn.qkv_proj", None)],
        0,
    )
    pieces = [numbers_of(tensors, f"model.layers.0.self_attn.{part}_proj", formats[name]) for part in "qkv"]
    np.testing.assert_array_equal(np.concatenate(pieces).T, own.numbers())
    names = tensors.names()
    assert "model.embed_tokens.weight" in names and "model.layers.0.input_layernorm.weight" in names
    assert not any(each.startswith("ernie.") or "qkv" in each for each in names)
    if kind == "experts":
        end = "weight_packed" if scheme.startswith("wint") else "weight"
        assert (
            f"model.layers.1.mlp.experts.3.gate_proj.{end}" in names
            and "model.layers.1.mlp.gate.weight" in names
        )
    assert (theirs.folder / "tokenizer.json").exists() and (theirs.folder / "report.md").exists()
    with pytest.raises(UnsupportedError, match=r"quantised \(compressed-tensors\), in a layout that"):
        read_quantisation(theirs.folder)


def _shape(kind):
    return (128, 384) if kind == "dense" else (32, 128)


def test_the_fields(tmp_path):
    _, done = quantised_folder(
        tmp_path, CONFIGS["experts"](), quant_scheme="wint4/8", quant_method="rtn", **LAYOUT
    )
    content = json.loads((done.folder / "config.json").read_text())
    found = content["quantization_config"]
    assert found["quant_method"] == "compressed-tensors" and found["format"] == "pack-quantized"
    assert content["architectures"] == ["Ernie4_5_MoeForCausalLM"] and "torch_dtype" in content
    first, second = found["config_groups"].values()
    assert first["targets"] == [r"re:.*mlp\.experts\..*"] and first["weights"]["num_bits"] == 4
    assert second["targets"] == ["Linear"] and second["weights"]["num_bits"] == 8
    assert found["ignore"] == ["lm_head", r"re:.*mlp\.gate$"]
    assert second["weights"]["strategy"] == "channel" and second["input_activations"] is None
