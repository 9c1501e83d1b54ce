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
# Matrices that stay fp32 whatever the type of the model, and are the same everywhere.
ROUTERS = ("mlp.gate.weight", "mlp.gate.weight_1", "mlp.moe_statics.e_score_correction_bias")
EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
BLOCKS = "model.layers"
# Multi-token prediction: blocks, and what joins the hidden state and the next token's embedding before them.
AHEAD_BLOCKS = "model.mtp_block"
AHEAD_LINEARS = "model.mtp_linear_proj"
NORMS = ("input_layernorm", "post_attention_layernorm", "model.norm")


def stays_fp32(parameter: str) -> bool:
    """Whether a parameter is fp32 in memory and in every file."""
    return parameter.endswith(ROUTERS)
