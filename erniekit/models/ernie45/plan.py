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
EMBEDDING = "model.embed_tokens"
HEAD = "lm_head"
BLOCKS = "model.layers"
NORMS = ("input_layernorm", "post_attention_layernorm", "model.norm")
