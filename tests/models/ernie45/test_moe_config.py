"""config.json of mixtures of experts in each form, counts by hand, and what is refused."""

from typing import Any

import pytest

from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "moe_num_experts": 8,
    "moe_intermediate_size": 12,
    "moe_k": 2,
    "moe_num_shared_experts": 1,
    "moe_layer_start_index": 1,
    "moe_layer_end_index": -1,
}
VISION = {
    "moe_num_experts": [8, 8],
    "moe_intermediate_size": [12, 4],
    "moe_layer_start_index": [1, 1],
    "moe_layer_end_index": [5, 4],
}
NESTED = {
    "model_type": "ernie4_5_vl_moe",
    "tie_word_embeddings": False,
    "vision_config": {"hidden_size": 1280},
    "text_config": {
        **{name: value for name, value in SIZES.items() if "layer_" not in name},
        "moe_intermediate_size": [12, 4],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
    },
}


def read(**changes: Any) -> Ernie45MoeConfig:
    return Ernie45MoeConfig.from_json({**SIZES, **changes})


def test_one_number_and_a_list_of_one_are_the_same() -> None:
    assert read() == read(moe_num_experts=[8], moe_layer_start_index=[1])
    assert read().moe_num_experts == (8,) and read().num_modalities == 1


def test_the_flat_and_the_nested_form_of_two_modalities() -> None:
    flat = read(**VISION)
    assert flat.num_modalities == 2 and flat.moe_intermediate_size == (12, 4)
    assert [flat.is_moe_layer(layer) for layer in range(4)] == [False, True, True, True]
    nested = Ernie45MoeConfig.from_json(NESTED)
    assert nested.moe_num_experts == (8, 8) and nested.rope_theta == 1e4
    assert nested.hidden_size == 32 and nested.tie_word_embeddings is False
    assert [nested.is_moe_layer(layer) for layer in range(4)] == [False, True, True, True]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        VISION,
        {"moe_capacity": [6, 4, 2]},
        {"scoring_func": "sigmoid", "moe_group_experts": True, "num_nextn_predict_layers": 1},
        {"moe_layer_start_index": [1, 2], "moe_num_shared_experts": 0, "eos_token_id": [2, 3]},
    ],
    ids=str,
)
def test_what_is_written_is_read_back(changes: dict[str, Any]) -> None:
    config = read(**changes)
    content = config.to_json()
    assert Ernie45MoeConfig.from_json(content) == config
    two = "moe_intermediate_size" in changes
    assert content["model_type"] == ("ernie4_5_moe_vl" if two else "ernie4_5_moe")
    assert content["moe_num_experts"] == ([8, 8] if two else 8)
    assert ("moe_capacity" in content) == ("moe_capacity" in changes)


def test_counts_by_hand() -> None:
    """Every part of a model of 4 layers, of which 3 hold experts."""
    config = read(num_nextn_predict_layers=1, **VISION)
    attention = 32 * (4 + 2 * 2) * 8 + 32 * 32
    dense, expert, vision_expert = 3 * 32 * 56, 3 * 32 * 12, 3 * 32 * 4
    parts = {
        "embedding": 97 * 32,
        "attention": 4 * attention,
        "mlp": dense,
        "router": 3 * (2 * 32 * 8 + 2 * 8),
        "experts": 3 * 8 * expert,
        "vision experts": 3 * 8 * vision_expert,
        "shared experts": 3 * expert,
        "norms": 9 * 32,
        "head": 0,
        "multi-token prediction": attention + dense + 2 * 32 + 2 * 32 + 2 * 32 * 32,
    }
    assert config.parameters_by_part() == parts
    assert config.num_parameters() == sum(parts.values())
    shared = sum(parts[p] for p in ("embedding", "attention", "mlp", "shared experts", "norms"))
    assert config.num_active_parameters() == shared + 3 * (2 * expert + 32 * 8 + 8)
    assert config.num_active_parameters(1) == shared + 3 * (2 * vision_expert + 32 * 8 + 8)


def test_flops_by_hand() -> None:
    config = read()
    attention = 32 * 64 + 32 * 32
    products = 4 * attention + 3 * 32 * 56 + 3 * (32 * 8 + 3 * 3 * 32 * 12) + 97 * 32
    assert config.flops_per_token(1) == 2 * (products + 4 * 2 * 32)
    assert config.flops_per_token(9) == 2 * (products + 4 * 2 * 32 * 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moe_k": 9}, "moe_k 9 is more than moe_num_experts"),
        ({"moe_k": 0}, "moe_k is 0"),
        ({"moe_num_experts": 0}, "moe_num_experts is 0"),
        ({"moe_num_experts": "8"}, "moe_num_experts is '8'"),
        ({"moe_num_experts": [8, 8]}, "each must have one number, or two"),
        ({"moe_num_experts": [8, 8, 8], "moe_intermediate_size": [1, 1, 1]}, "or two"),
        ({"moe_layer_start_index": -1}, "moe_layer_start_index is -1"),
        ({"moe_layer_start_index": 4}, "no layer holds experts"),
        ({"moe_layer_interval": 5}, "no layer holds experts"),
        ({"moe_layer_interval": 0}, "moe_layer_interval is 0"),
        ({"moe_num_shared_experts": -1}, "moe_num_shared_experts is -1"),
        ({"moe_capacity": [6, 6]}, "three numbers above 0"),
        ({"moe_capacity": 6}, "three numbers above 0"),
        ({"moe_group_experts": True, "moe_k": 3}, "3 groups of equal size"),
        ({"moe_norm_min": 0}, "moe_norm_min is 0"),
        ({"moe_norm_gate_logits": 1}, "moe_norm_gate_logits is 1"),
    ],
)
def test_wrong_numbers_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=f"here.json: .*{message}"):
        Ernie45MoeConfig.from_json({**SIZES, **change}, source="here.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scoring_func": "tanh"}, "'tanh' is not built; softmax and sigmoid are"),
        ({**VISION, "moe_use_hard_gate": False}, "moe_use_hard_gate is False"),
        ({"mlp_layer_types": ["sparse", "dense", "sparse", "dense"]}, "must follow each other"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_variants_that_are_not_built_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        read(**change)


def test_vision_tokens_of_each_form() -> None:
    released = {**SIZES, **VISION, "vocab_size": 103424}
    marks = {101304: 1, 101305: 1, 101306: 2, 101307: 2, 103367: 2}
    # Baidu's files name the placeholder of images only, transformers' call it image_token_id.
    for given in ({"im_patch_id": 100295}, {"image_token_id": 100295}, {}):
        tokens = Ernie45MoeConfig.from_json({**released, **given}).vision_tokens()
        assert tokens.types == {100295: 1, **marks} and tokens.placeholders == {100295, 103367}
        assert not tokens.needs_tower
    assert not read().vision_tokens().types, "a model of text"
    assert not read(**VISION).vision_tokens().types, "a vocabulary without them"
    assert Ernie45MoeConfig.from_json({**NESTED, "image_token_id": 9}).vision_tokens().needs_tower


def test_vision_tokens_are_written_and_read_back() -> None:
    config = read(**VISION, im_patch_id=7, video_token_id=None, image_start_token_id=8)
    content = config.to_json()
    assert content["im_patch_id"] == content["image_token_id"] == 7 and "has_tower" not in content
    assert Ernie45MoeConfig.from_json(content) == config
    assert config.vision_tokens().types == {7: 1, 8: 1} and config.vision_tokens().placeholders == {7}
    assert "im_patch_id" not in read().to_json()
    # A model that was made for a tower stays one, in whatever form its config.json is written.
    nested = Ernie45MoeConfig.from_json(NESTED)
    again = nested.to_json()
    assert again["vision_config"] == NESTED["vision_config"] and "text_config" not in again
    assert Ernie45MoeConfig.from_json(again) == nested and nested.has_tower
    with pytest.raises(CheckpointError, match="im_patch_id is '7'; it must be a token id"):
        read(**VISION, im_patch_id="7")
