import pytest

from erniekit.checkpoint.presets import find_preset, known_names, preset_hub_id, read_presets
from erniekit.models.registry import MODELS, config_from_json

PUBLISHED = {  # billions, as the model names and reports say
    "ERNIE-4.5-0.3B": 0.36075,
    "ERNIE-4.5-21B-A3B": 21.83,
    "ERNIE-4.5-300B-A47B": 299.48,
    "ERNIE-4.5-VL-28B-A3B": 29.4,
    "ERNIE-4.5-VL-424B-A47B": 423.5,
}


def text_parameters(config: dict[str, int], experts: list[int], widths: list[int]) -> int:
    """Parameters of the decoder, counted layer by layer."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    total = vocab * hidden * (1 if config["tie_word_embeddings"] else 2) + hidden
    start, end = config.get("moe_layer_start_index", 0), config.get("moe_layer_end_index", -1)
    first, last = (min(start), max(end)) if isinstance(start, list) else (start, end)
    for layer in range(config["num_hidden_layers"]):
        total += hidden * (query + 2 * key) + query * hidden + 2 * hidden
        if not experts or not first <= layer <= last:
            total += 3 * hidden * config["intermediate_size"]
            continue
        for count, width in zip(experts, widths, strict=True):
            total += count * (3 * hidden * width + hidden + 1)  # the router's column and correction bias
        total += config["moe_num_shared_experts"] * 3 * hidden * widths[0]
    return total


def vision_parameters(hidden: int) -> int:
    width, inner, depth, merged = 1280, 5120, 32, 5120
    block = (
        4 * width + (width + 1) * 3 * width + (width + 1) * width + (width + 1) * inner + (inner + 1) * width
    )
    tower = 588 * width + depth * block + 2 * width
    square, norm = (merged + 1) * merged, 2 * merged
    resampler = 2 * square + norm + (2 * merged + 1) * merged + square + norm + (merged + 1) * hidden + hidden
    return tower + resampler


def as_list(value: int | list[int] | None) -> list[int]:
    return value if isinstance(value, list) else [value] if value else []


@pytest.mark.parametrize("preset", read_presets(), ids=lambda preset: preset.name)
def test_parameters_follow_from_the_numbers(preset) -> None:  # type: ignore[no-untyped-def]
    config = dict(preset.config)
    experts, widths = as_list(config.get("moe_num_experts")), as_list(config.get("moe_intermediate_size"))
    total = text_parameters(config, experts, widths)
    if preset.model_type == "ernie4_5_moe_vl":
        total += vision_parameters(config["hidden_size"])
        assert preset.not_built_parameters == vision_parameters(config["hidden_size"])
    assert preset.parameters == total
    assert preset.model_type in MODELS
    built = config_from_json(preset.model_type, config, source=preset.name)
    assert built.num_parameters() == preset.parameters - preset.not_built_parameters
    assert built.num_active_parameters() == preset.active_parameters


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_totals_are_those_published(name: str) -> None:
    preset = find_preset(name)
    assert preset is not None
    assert preset.parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=5e-4)


def test_active_parameters_of_the_text_models() -> None:
    active = {p.name: p.active_parameters / 1e9 for p in read_presets()}
    assert active["ERNIE-4.5-21B-A3B"] == pytest.approx(3.35, abs=0.005)
    assert active["ERNIE-4.5-300B-A47B"] == pytest.approx(47.9, abs=0.05)


def test_all_variants_are_there() -> None:
    names = [preset.name for preset in read_presets()]
    assert len(names) == 13 and len(set(names)) == 13
    assert names[0] == "starter"
    assert sum(name.endswith("-Base") for name in names) == 5
    assert sum(name.endswith("-Thinking") for name in names) == 2
    assert sum("-VL-" in name for name in names) == 5
    assert "baidu/ERNIE-4.5-21B-A3B-Thinking" in known_names()


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("ERNIE-4.5-0.3B", "baidu/ERNIE-4.5-0.3B-PT"),
        ("ernie-4.5-0.3b", "baidu/ERNIE-4.5-0.3B-PT"),
        ("ERNIE-4.5-0.3B-Paddle", "baidu/ERNIE-4.5-0.3B-Paddle"),
        ("ERNIE-4.5-0.3B-Base-PT", "baidu/ERNIE-4.5-0.3B-Base-PT"),
        ("baidu/ERNIE-4.5-0.3B-PT", None),
        ("starter", None),
        ("ERNIE-4.5-0.4B", None),
    ],
)
def test_hub_ids_of_names(name: str, hub_id: str | None) -> None:
    assert preset_hub_id(name) == hub_id
