"""FastDeploy's fields of config.json, for models that it can read, and for those it cannot."""

import pytest

from erniekit.models.ernie45 import plan
from erniekit.quant.fastdeploy import fields_of
from erniekit.quant.schemes import FORMATS, SCHEMES, formats_of, role_of

NAMES = [
    *("model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.down_proj.weight"),
    *("model.layers.1.mlp.experts.down_proj.weight", "model.layers.2.mlp.experts.down_proj.weight"),
]
STATE = {"is_quantized": True, "is_permuted": False}


def fields(scheme, names=NAMES, **changes):
    rows = {id(row): name for name, row in FORMATS.items()}
    formats = {name: rows[id(row)] for name, row in formats_of(names, plan.ROLES, scheme).items()} | changes
    rotation = 32 if scheme == "fp8_tensor" else 0
    roles = {name: role_of(name, plan.ROLES) for name in formats}
    return fields_of(formats, roles, kv_cache=SCHEMES[scheme].kv_cache, rotation=rotation)


def test_the_fields_of_each_scheme():
    assert fields("wint8") == {"quantization": "wint8", **STATE}
    assert fields("wint4") == {"quantization": "wint4", **STATE}
    mixed = {"quantization": "mix_quant", "dense_quant_type": "wint8", **STATE}
    assert fields("wint4/8") == {**mixed, "moe_quant_type": "wint4"}
    assert fields("w4a8") == {**mixed, "moe_quant_type": "w4a8"}
    cache = {"kv_cache_quant_type": "int8", "is_channel_wise": True}
    assert fields("w4a8c8") == {**mixed, "moe_quant_type": "w4a8", **cache}
    assert fields("fp8_tensor") == {
        **{
            "quantization": "mix_quant",
            "dense_quant_type": "tensor_wise_fp8",
            "moe_quant_type": "tensor_wise_fp8",
        },
        **{"hadamard_block_size": 32, **STATE},
    }
    assert fields("fp8_block") == {"quantization": "block_wise_fp8", "weight_block_size": [128, 128], **STATE}


def test_two_bits_begin_at_a_layer():
    found = fields("wint2")
    assert (found["quantization"], found["dense_quant_type"], found["moe_quant_type"]) == (
        "wint2",
        "wint8",
        "w4w2",
    )
    two = found["moe_quant_config"]["moe_w2_quant_config"]
    assert (two["quant_start_layer"], two["quant_end_layer"], two["quant_group_size"]) == (1, 2, 64)
    later = fields("wint2", **{NAMES[2]: "int4"})["moe_quant_config"]
    assert later["moe_w4_quant_config"]["quant_end_layer"] == 1
    assert later["moe_w2_quant_config"]["quant_start_layer"] == 2
    assert fields("wint2", **{NAMES[3]: "int4"}) is None


@pytest.mark.parametrize("scheme", ["nf4", "wint4_g64", "wint4_g32", "w8a8", "wint2.5", "int2"])
def test_what_it_does_not_know(scheme):
    assert fields(scheme) is None
    assert "fastdeploy" not in SCHEMES[scheme].layouts


def test_every_scheme_that_says_so_has_fields():
    assert [name for name in SCHEMES if "fastdeploy" in SCHEMES[name].layouts] == [
        name for name in SCHEMES if name != "bf16" and fields(name) is not None
    ]


def test_a_dense_model_has_no_experts_for_some():
    dense = NAMES[:2]
    assert fields("wint8", dense) == {"quantization": "wint8", **STATE}
    assert fields("w4a8", dense) is None and fields("wint2", dense) is None
