"""What each part of the model is, as data: read by parallelism, adapters and quantisation."""

# Linear layers by how tensor parallelism may split them: `column` the outputs, `row` the inputs.
LINEARS = {
    "self_attn.qkv_proj": "column",
    "self_attn.o_proj": "row",
    "mlp.up_gate_proj": "column",
    "mlp.down_proj": "row",
}
# The fused projections and the pieces that they hold, in order.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "up_gate_proj": ("gate_proj", "up_proj")}
# Experts: one parameter [experts, in, out] each; `column` and `row` are of every expert's matrix.
EXPERTS = {
    "mlp.experts.up_gate_proj": "column",
    "mlp.experts.down_proj": "row",
    "mlp.vision_experts.up_gate_proj": "column",
    "mlp.vision_experts.down_proj": "row",
}
SHARED_EXPERTS = {"mlp.shared_experts.up_gate_proj": "column", "mlp.shared_experts.down_proj": "row"}
# What the matrices are for quantisation; those without a role are not quantised.
ROLES = {
    "self_attn.qkv_proj": "attention",
    "self_attn.o_proj": "attention",
    "mlp.up_gate_proj": "dense_mlp",
    "mlp.down_proj": "dense_mlp",
    **dict.fromkeys(EXPERTS, "experts"),
    **dict.fromkeys(SHARED_EXPERTS, "shared_experts"),
}
# Where features may be scaled without a change of the model: norms with the matrices that read them, and
# gated MLPs, whose half `up` comes linearly out of the first matrix into the second.
NORMED = {
    "input_layernorm": ("self_attn.qkv_proj",),
    "post_attention_layernorm": (
        *("mlp.up_gate_proj", "mlp.experts.up_gate_proj", "mlp.vision_experts.up_gate_proj"),
        *("mlp.shared_experts.up_gate_proj", "mlp.gate"),
    ),
}
GATED = {
    "mlp.up_gate_proj": "mlp.down_proj",
    "mlp.experts.up_gate_proj": "mlp.experts.down_proj",
    "mlp.vision_experts.up_gate_proj": "mlp.vision_experts.down_proj",
    "mlp.shared_experts.up_gate_proj": "mlp.shared_experts.down_proj",
}
# Matrices that stay fp32 whatever the type of the model, and are the same everywhere.
ROUTERS = ("mlp.gate.weight", "mlp.gate.weight_1", "mlp.moe_statics.e_score_correction_bias")
# What no gradient changes.
UNTRAINED = ("mlp.moe_statics.e_score_correction_bias",)
EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
FINAL_NORM = "model.norm"
BLOCKS = "model.layers"
# Multi-token prediction: blocks, and what joins the hidden state and the next token's embedding before them.
AHEAD_BLOCKS = "model.mtp_block"
AHEAD_LINEARS = "model.mtp_linear_proj"
# Named operators, for recomputation: paths of methods below a block (blocks differ, not all have all),
# each with those of its results that may be made again when they are needed.
OPERATORS: dict[str, dict[str, tuple[int, ...]]] = {
    "norm": {"input_layernorm.normalise": (0,), "post_attention_layernorm.normalise": (0,)},
    "qkv": {"self_attn.qkv_proj.forward": (0,)},
    "rope": {"self_attn.turn": (0, 1, 2)},
    "core_attention": {"self_attn.core_attention": (0,)},
    "o_proj": {"self_attn.o_proj.forward": ()},
    "router": {"mlp.choose_experts": ()},
    "dispatch": {"mlp.dispatcher.dispatch": (0,), "mlp.dispatcher.combine": ()},
    "gate_up": {
        "mlp.up_gate_proj.forward": (0,),
        "mlp.experts.up_gate_proj.forward": (0,),
        "mlp.vision_experts.up_gate_proj.forward": (0,),
    },
    "activation": {
        "mlp.activation": (0,),
        "mlp.experts.activation": (0,),
        "mlp.vision_experts.activation": (0,),
    },
    "down": {
        "mlp.down_proj.forward": (),
        "mlp.experts.down_proj.forward": (0,),
        "mlp.vision_experts.down_proj.forward": (0,),
    },
    "shared_experts": {"mlp.shared_experts.forward": ()},
}
WHOLE_ATTENTION = "self_attn"
EXPERTS_LAYER = "mlp"


def stays_fp32(parameter: str) -> bool:
    """Whether a parameter is fp32 in memory and in every file."""
    return parameter.endswith(ROUTERS)
