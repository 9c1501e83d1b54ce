"""Sizes of an adapter, beside the one that is built."""

from math import prod

import pytest

from erniekit.adapters.lora import apply
from erniekit.estimate.adapters import adapter_shapes
from erniekit.models.registry import load_family
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

DENSE, EXPERTS = tiny_config(), tiny_moe_config()


def test_factors_by_hand():
    """Hidden 32; q, k, v of 64, 32, 32; a pair of factors of rank 4 for each."""
    family = load_family(DENSE)
    shapes = adapter_shapes(family.weights.memory_shapes(DENSE), family.plan, _layout(DENSE), lora_rank=4)
    qkv = "model.layers.0.self_attn.qkv_proj"
    assert shapes[f"{qkv}.lora_A"] == (32, 12) and shapes[f"{qkv}.lora_B"] == (4, 128)
    assert len(shapes) == 2 * 4 * 2


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize(
    "targets", [(), ("all-linear",), ("up_proj", "v_proj"), ("o_proj", "experts"), (r"layers\.1\.",)]
)
def test_as_many_as_are_built(config, targets):
    if "experts" in targets and config is DENSE:
        pytest.skip("no experts")
    family, layout = load_family(config), _layout(config)
    applied = apply(
        family.build(config, dtype="fp32"),
        layout,
        lora_rank=4,
        lora_alpha=-1,
        lora_dropout=0.0,
        rslora=False,
        rslora_plus=False,
        lora_plus_scale=1.0,
        lora_target=targets,
        lora_modules_to_save=(),
    )
    shapes = family.weights.memory_shapes(config)
    counted = adapter_shapes(shapes, family.plan, layout, lora_rank=4, lora_target=targets)
    assert applied.layers
    built = sum(
        layer.lora_A.numel().item() + layer.lora_B.numel().item() for layer in applied.layers.values()
    )
    assert sum(prod(shape) for shape in counted.values()) == built


def _layout(config):
    family = load_family(config)
    return lambda parameter, shape: family.names_in_files(parameter, shape, config)
