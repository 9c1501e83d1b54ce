"""config.json in each form it is found in, what it must not say, and what is written."""

import pytest

from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.models.ernie45.config import Ernie45Config

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 10000.0},
        {"rope_theta": 10000.0, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        {"rope_theta": 1.0, "rope_parameters": {"rope_theta": 10000.0}},
    ],
)
def test_the_rotary_base_is_read_in_each_spelling(rope):
    assert Ernie45Config.from_json({**SIZES, **rope}).rope_theta == 10000.0


def test_what_is_left_out_follows_from_the_rest():
    config = Ernie45Config.from_json({**SIZES, "head_dim": None})
    assert config.head_dim == 8 and config.num_key_value_heads == 4 and config.rope_theta == 500000.0
    assert Ernie45Config.from_json({**SIZES, "head_dim": 20}).head_dim == 20


def test_what_is_written_is_read_back():
    config = Ernie45Config.from_json({**SIZES, "eos_token_id": [2, 5], "use_bias": True, "rope_theta": 1e5})
    content = config.to_json(dtype="bfloat16")
    assert Ernie45Config.from_json(content) == config
    assert content["rope_theta"] == content["rope_parameters"]["rope_theta"] == 1e5
    assert content["eos_token_id"] == [2, 5] and content["torch_dtype"] == content["dtype"] == "bfloat16"
    assert content["architectures"] == ["Ernie4_5ForCausalLM"] and content["model_type"] == "ernie4_5"


def test_what_is_not_used_is_written_again():
    given = {**SIZES, "x_note": {"kept": [1]}, "auto_map": {"AutoModel": "m.py"}, "hidden_act": "silu"}
    content = Ernie45Config.from_json({**given, "torch_dtype": "bfloat16"}).to_json(dtype="float32")
    assert content["x_note"] == {"kept": [1]} and "auto_map" not in content and "others" not in content
    assert content["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size is '32'; it must be a whole number above 0"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"num_hidden_layers": True}, "num_hidden_layers is True"),
        ({"num_key_value_heads": 3}, "4 is not a multiple of num_key_value_heads 3"),
        ({"head_dim": 7}, "head_dim 7 is odd"),
        ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'; it must be a number above 0"),
        ({"rope_theta": -1}, "rope_theta is -1"),
        ({"use_bias": "no"}, "use_bias is 'no'; it must be true or false"),
    ],
)
def test_wrong_numbers_are_named(change, message):
    with pytest.raises(CheckpointError, match=f"here.json: .*{message}"):
        Ernie45Config.from_json({**SIZES, **change}, source="here.json")


def test_a_missing_number_is_named():
    with pytest.raises(CheckpointError, match="vocab_size is missing"):
        Ernie45Config.from_json({name: size for name, size in SIZES.items() if name != "vocab_size"})


@pytest.mark.parametrize(
    "change",
    [
        {"moe_num_experts": 64},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"type": "yarn", "factor": 4}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
    ],
)
def test_variants_that_are_not_built_are_refused(change):
    with pytest.raises(UnsupportedError):
        Ernie45Config.from_json({**SIZES, **change})
