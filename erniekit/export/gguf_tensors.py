"""A model's parameters as llama.cpp's tensors: its names, matrices [out, in], fused ones taken apart.

llama.cpp knows the models as `ernie4_5` and `ernie4_5-moe`; rotary positions are of neighbouring channels
there as here, so no row changes its place.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from erniekit.errors import UnsupportedError

_OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_AHEAD = "model.mtp_"


def check_supported(config: Any) -> None:
    """Refuse what llama.cpp's architectures do not have.

    Raises:
        UnsupportedError: names the number of config.json.
    """
    refused = None
    if config.use_bias:
        refused = "use_bias: true"
    elif has_experts(config):
        last = config.num_hidden_layers - 1
        first = min(config.moe_layer_start_index)
        if len(config.moe_num_experts) > 1:
            refused = "experts of two modalities"
        elif config.moe_layer_interval != 1 or not all(map(config.is_moe_layer, range(first, last + 1))):
            refused = "layers without experts behind the first one that has them"
        elif config.moe_group_experts or not config.moe_norm_gate_logits or config.scoring_func != "softmax":
            refused = "moe_group_experts, moe_norm_gate_logits: false, or another scoring_func than softmax"
    if refused is not None:
        raise UnsupportedError(
            f"llama.cpp has no ERNIE 4.5 with {refused}, so there is no GGUF file of this model; write "
            "export_layout: hf"
        )


def has_experts(config: Any) -> bool:
    """Whether any layer holds experts."""
    return any(map(config.is_moe_layer, range(config.num_hidden_layers)))


def is_left_out(parameter: str) -> bool:
    """Whether llama.cpp has no place for a parameter: multi-token prediction, which answers do not need."""
    return parameter.startswith(_AHEAD)


def pieces(
    parameter: str, shape: tuple[int, ...], config: Any
) -> Iterator[tuple[str, tuple[int, ...], slice]]:
    """Name and shape of every tensor that a parameter becomes, and the columns that it takes."""
    everything = slice(None)
    if parameter in _OUTSIDE:
        turned = shape[::-1] if parameter == "lm_head.weight" else shape
        yield _OUTSIDE[parameter], turned, everything
        return
    _, _, layer, rest = parameter.split(".", 3)
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    half = shape[-1] // 2
    parts = {
        "input_layernorm.weight": [("attn_norm.weight", shape[-1])],
        "self_attn.qkv_proj.weight": [
            ("attn_q.weight", query),
            ("attn_k.weight", key),
            ("attn_v.weight", key),
        ],
        "self_attn.o_proj.weight": [("attn_output.weight", shape[-1])],
        "post_attention_layernorm.weight": [("ffn_norm.weight", shape[-1])],
        "mlp.up_gate_proj.weight": [("ffn_gate.weight", half), ("ffn_up.weight", half)],
        "mlp.down_proj.weight": [("ffn_down.weight", shape[-1])],
        "mlp.gate.weight": [("ffn_gate_inp.weight", shape[-1])],
        "mlp.moe_statics.e_score_correction_bias": [("exp_probs_b.bias", shape[-1])],
        "mlp.experts.up_gate_proj.weight": [("ffn_gate_exps.weight", half), ("ffn_up_exps.weight", half)],
        "mlp.experts.down_proj.weight": [("ffn_down_exps.weight", shape[-1])],
        "mlp.shared_experts.up_gate_proj.weight": [
            ("ffn_gate_shexp.weight", half),
            ("ffn_up_shexp.weight", half),
        ],
        "mlp.shared_experts.down_proj.weight": [("ffn_down_shexp.weight", shape[-1])],
    }[rest]
    start = 0
    is_vector = rest.endswith(("layernorm.weight", "correction_bias"))
    for name, width in parts:
        whole = (width,) if is_vector else (*shape[:-2], width, shape[-2])
        yield f"blk.{layer}.{name}", whole, slice(start, start + width)
        start += width


def taken(parameter: str, values: np.ndarray, config: Any) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors themselves."""
    for name, shape, columns in pieces(parameter, values.shape, config):
        piece = values[..., columns]
        is_turned = len(shape) > 1 and parameter != "model.embed_tokens.weight"
        yield name, np.ascontiguousarray(piece.swapaxes(-1, -2) if is_turned else piece).reshape(shape)
