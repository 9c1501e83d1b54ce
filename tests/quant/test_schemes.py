"""The table of schemes: what it says, by part of a model, and the bytes that follow."""

import pytest

from erniekit.config.model import QUANTISED
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.weights import memory_shapes
from erniekit.ops import ccq
from erniekit.ops.number_formats import FORMATS as NUMBERS
from erniekit.quant.schemes import FORMATS, ROLES, SCHEMES, WHILE_READ, formats_of, weight_bytes
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

DATA_NEEDED = {"w8a8", "w4a8", "w4a8c8", "fp8_tensor"}


def test_the_words_of_compute_type_are_the_rows_of_weights_alone():
    assert set(QUANTISED) == set(WHILE_READ)
    assert set(SCHEMES) - set(WHILE_READ) == {"bf16", "fp8_block", *DATA_NEEDED}


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_speak_of_roles_and_formats_that_there_are(name):
    scheme = SCHEMES[name]
    assert set(scheme.weights) == (set() if name == "bf16" else set(ROLES)) and scheme.words
    assert scheme.used() <= set(FORMATS) and set(scheme.without_experts or {}) <= {"dense_mlp"}
    assert scheme.needs_calibration == (name in DATA_NEEDED)


def test_formats_are_of_numbers_that_there_are():
    assert {each.number for each in FORMATS.values()} == {*NUMBERS, *ccq.NUMBERS}
    words = {name: each.granularity for name, each in FORMATS.items()}
    assert words["int8"] == "channel" and words["nf4"] == "group"
    assert words["fp8_tensor"] == "tensor" and words["fp8_block"] == "block"
    assert FORMATS["fp8_tensor"].activations.is_static and not FORMATS["fp8_block"].activations.is_static


def test_every_matrix_of_a_block_has_a_role_and_nothing_else():
    shapes = memory_shapes(tiny_moe_config(2, moe_num_shared_experts=1, num_nextn_predict_layers=1))
    assert set(plan.ROLES.values()) == set(ROLES)
    quantised = set(formats_of(shapes, plan.ROLES, "wint8"))
    left = {name.split("layers.1.")[-1] for name in shapes if name not in quantised}
    blocks = {name for name in shapes if "proj.weight" in name and "mtp_linear_proj" not in name}
    assert quantised == blocks
    assert {"model.embed_tokens.weight", "mlp.gate.weight", "input_layernorm.weight"} <= left
    assert formats_of(shapes, plan.ROLES, "bf16") == {}


def test_experts_have_fewer_bits_than_the_rest():
    ends = ("mlp.experts.up_gate_proj", "mlp.vision_experts.down_proj", "mlp.shared_experts.up_gate_proj")
    ends += ("mlp.down_proj", "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate", "input_layernorm")
    names = [f"model.layers.3.{end}.weight" for end in ends] + ["model.layers.3.self_attn.qkv_proj.bias"]
    found = list(formats_of(names, plan.ROLES, "wint4/8").values())
    assert found == [FORMATS["int4"]] * 2 + [FORMATS["int8"]] * 4


def test_the_mlps_of_a_dense_model_may_count_as_experts():
    dense = ["model.layers.0.mlp.down_proj.weight", "model.layers.0.self_attn.o_proj.weight"]
    experts = [*dense, "model.layers.1.mlp.experts.down_proj.weight"]
    for scheme, format in (("wint2", "ccq2"), ("w4a8", "w4a8"), ("int2", "int2_g128"), ("wint2.5", "ccq2.5")):
        assert list(formats_of(dense, plan.ROLES, scheme).values()) == [FORMATS[format], FORMATS["int8"]]
        found = list(formats_of(experts, plan.ROLES, scheme).values())
        assert found == [FORMATS["int8"], FORMATS["int8"], FORMATS[format]]


def test_bytes_of_a_weight():
    assert FORMATS["int8"].num_bytes((100, 7)) == 700 + 4 * 7
    assert FORMATS["int4"].num_bytes((3, 101, 7)) == 3 * (51 * 7 + 4 * 7)
    assert FORMATS["nf4"].num_bytes((128, 7)) == 64 * 7 + 2 * 4 * 7
    assert FORMATS["int4_g32"].num_bytes((64, 7)) == 32 * 7 + 2 * 2 * 7
    assert FORMATS["int2_g128"].num_bytes((256, 7)) == 64 * 7 + 2 * 4 * 7
    assert FORMATS["ccq2"].num_bytes((128, 7)) == 32 * 7 + 7 + 12 * 7


def test_bytes_of_a_model():
    """Of the tiny model the embedding and the norms stay, and its biases, two bytes each in bf16."""
    config = tiny_config(tie_word_embeddings=True, use_bias=True)
    shapes = memory_shapes(config)
    matrices = [shape for name, shape in shapes.items() if name.endswith("proj.weight")]
    total = sum(i * o + 4 * o for i, o in matrices)
    rest = config.num_parameters() - sum(i * o for i, o in matrices)
    assert weight_bytes(shapes, plan.ROLES, "wint8", 2) == total + 2 * rest
