"""The table of schemes: what it says, by part of a model, and the bytes that follow."""

import pytest

from erniekit.config.model import QUANTISED
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.weights import memory_shapes
from erniekit.ops.number_formats import FORMATS
from erniekit.quant.schemes import INT4, INT8, NF4, ROLES, SCHEMES, format_of, weight_bytes
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config


def test_the_words_of_compute_type_are_the_rows():
    assert set(QUANTISED) == set(SCHEMES) == {"wint8", "wint4", "wint4/8", "nf4"}


@pytest.mark.parametrize("name", SCHEMES)
def test_rows_speak_of_roles_and_formats_that_there_are(name):
    scheme = SCHEMES[name]
    assert set(scheme.weights) == set(ROLES) and scheme.words
    assert all(chosen.number in FORMATS for chosen in scheme.weights.values())


def test_every_matrix_of_a_block_has_a_role_and_nothing_else():
    shapes = memory_shapes(tiny_moe_config(2, moe_num_shared_experts=1, num_nextn_predict_layers=1))
    assert set(plan.ROLES.values()) == set(ROLES)
    quantised = {name for name in shapes if format_of(name, plan.ROLES, "wint8")}
    left = {name.split("layers.1.")[-1] for name in shapes if name not in quantised}
    blocks = {name for name in shapes if "proj.weight" in name and "mtp_linear_proj" not in name}
    assert quantised == blocks
    assert {"model.embed_tokens.weight", "mlp.gate.weight", "input_layernorm.weight"} <= left


def test_experts_have_fewer_bits_than_the_rest():
    def of(name):
        return format_of(f"model.layers.3.{name}.weight", plan.ROLES, "wint4/8")

    assert of("mlp.experts.up_gate_proj") == of("mlp.vision_experts.down_proj") == INT4
    assert of("mlp.shared_experts.up_gate_proj") == of("mlp.down_proj") == INT8
    assert of("self_attn.qkv_proj") == of("self_attn.o_proj") == INT8
    assert of("mlp.gate") is None and of("input_layernorm") is None
    assert format_of("model.layers.3.self_attn.qkv_proj.bias", plan.ROLES, "wint4/8") is None


def test_bytes_of_a_weight():
    assert INT8.num_bytes((100, 7)) == 700 + 4 * 7
    assert INT4.num_bytes((3, 101, 7)) == 3 * (51 * 7 + 4 * 7)
    assert NF4.num_bytes((128, 7)) == 64 * 7 + 2 * 4 * 7


def test_bytes_of_a_model():
    """Of the tiny model the embedding and the norms stay, and its biases, two bytes each in bf16."""
    config = tiny_config(tie_word_embeddings=True, use_bias=True)
    shapes = memory_shapes(config)
    matrices = [shape for name, shape in shapes.items() if name.endswith("proj.weight")]
    total = sum(i * o + 4 * o for i, o in matrices)
    rest = config.num_parameters() - sum(i * o for i, o in matrices)
    assert weight_bytes(shapes, plan.ROLES, "wint8", 2) == total + 2 * rest
