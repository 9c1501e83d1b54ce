"""Parameters as llama.cpp's tensors: which columns go where, and what has no place there."""

from typing import Any

import numpy as np
import pytest

from erniekit.errors import UnsupportedError
from erniekit.export.gguf_tensors import check_supported, has_experts, is_left_out, pieces, taken
from erniekit.models.ernie45.weights import memory_shapes
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config


def test_fused_matrices_are_taken_apart_and_turned() -> None:
    config = tiny_config()
    fused = np.arange(32 * 128, dtype=np.float32).reshape(32, 128)
    found = dict(taken("model.layers.1.self_attn.qkv_proj.weight", fused, config))
    np.testing.assert_array_equal(found["blk.1.attn_q.weight"], fused[:, :64].T)
    np.testing.assert_array_equal(found["blk.1.attn_k.weight"], fused[:, 64:96].T)
    np.testing.assert_array_equal(found["blk.1.attn_v.weight"], fused[:, 96:].T)
    assert all(array.flags.c_contiguous for array in found.values())
    table = np.ones((264, 32), np.float32)
    assert dict(taken("model.embed_tokens.weight", table, config))["token_embd.weight"].shape == (264, 32)
    assert dict(taken("lm_head.weight", table.T, config))["output.weight"].shape == (264, 32)


def test_experts_stay_together_and_gates_are_routers() -> None:
    config = tiny_moe_config()
    up_gate = np.random.default_rng(0).normal(size=(4, 32, 48)).astype(np.float32)
    found = dict(taken("model.layers.1.mlp.experts.up_gate_proj.weight", up_gate, config))
    np.testing.assert_array_equal(found["blk.1.ffn_gate_exps.weight"][2], up_gate[2, :, :24].T)
    np.testing.assert_array_equal(found["blk.1.ffn_up_exps.weight"][3], up_gate[3, :, 24:].T)
    bias = np.arange(4, dtype=np.float32)[None]
    name = "model.layers.1.mlp.moe_statics.e_score_correction_bias"
    np.testing.assert_array_equal(dict(taken(name, bias, config))["blk.1.exp_probs_b.bias"], bias[0])


@pytest.mark.parametrize("config", [tiny_config(tie_word_embeddings=False), tiny_moe_config()])
def test_shapes_are_known_beforehand(config: Any) -> None:
    names = []
    for parameter, shape in memory_shapes(config).items():
        expected = [(name, whole) for name, whole, _ in pieces(parameter, shape, config)]
        found = [(name, array.shape) for name, array in taken(parameter, np.zeros(shape, np.float32), config)]
        assert found == expected
        names += [name for name, _ in found]
    assert len(names) == len(set(names))
    assert has_experts(config) == ("blk.1.ffn_gate_exps.weight" in names)


def test_what_has_no_place_there() -> None:
    assert is_left_out("model.mtp_block.0.mlp.down_proj.weight") and is_left_out(
        "model.mtp_emb_norm.0.weight"
    )
    assert not is_left_out("model.norm.weight")
    check_supported(tiny_config())
    check_supported(tiny_moe_config(num_nextn_predict_layers=1))
    for config, words in (
        (tiny_config(use_bias=True), "use_bias"),
        (tiny_moe_config(2), "two modalities"),
        (tiny_moe_config(num_hidden_layers=4, moe_layer_interval=2), "layers without experts"),
        (tiny_moe_config(moe_layer_end_index=(1,)), "layers without experts"),
        (tiny_moe_config(moe_norm_gate_logits=False), "moe_norm_gate_logits"),
    ):
        with pytest.raises(UnsupportedError, match=words):
            check_supported(config)
