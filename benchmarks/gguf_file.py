"""Writes a dense model as a GGUF file for llama.cpp, in 16 bits and without a tokenizer.

llama.cpp's `llama` architecture is this decoder: RMSNorm, grouped heads, rotary positions of neighbouring
channels, SwiGLU. Benchmarks feed it token ids, so the vocabulary is left out.
"""

from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURE = "llama"


def write_gguf(folder: Path, path: Path, dtype: str) -> None:
    """Write the model of a folder; `dtype` is `f16` or `bf16`, norms are fp32.

    Raises:
        ValueError: the model has biases, which the architecture does not.
    """
    import gguf

    from erniekit.models.registry import load_family, read_model_config

    config = read_model_config(folder)
    if config.use_bias:
        raise ValueError("llama.cpp's llama architecture has no biases")
    writer = gguf.GGUFWriter(str(path), ARCHITECTURE)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    types = gguf.LlamaFileType
    writer.add_file_type(types.MOSTLY_F16 if dtype == "f16" else types.MOSTLY_BF16)
    for name, word, array in load_family(config).load_weights(folder, config):
        for part, values in _parts(name, _wide(word, array), config):
            kind = gguf.GGMLQuantizationType
            wanted = kind.F32 if values.ndim == 1 else kind.F16 if dtype == "f16" else kind.BF16
            writer.add_tensor(part, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _wide(word: str, array: np.ndarray) -> np.ndarray:
    """fp32 from raw bits; bf16 comes as uint16."""
    if word == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _parts(name: str, values: np.ndarray, config: Any) -> list[tuple[str, np.ndarray]]:
    """A tensor in memory as llama.cpp's tensors: matrices [out, in], fused ones taken apart."""
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        turned = np.ascontiguousarray(values.T) if name == "lm_head.weight" else values
        return [(outside[name], turned)]
    _, _, layer, rest = name.split(".", 3)
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    inner = config.intermediate_size
    parts = {
        "input_layernorm.weight": [("attn_norm", 0)],
        "self_attn.qkv_proj.weight": [("attn_q", query), ("attn_k", key), ("attn_v", key)],
        "self_attn.o_proj.weight": [("attn_output", config.hidden_size)],
        "post_attention_layernorm.weight": [("ffn_norm", 0)],
        "mlp.up_gate_proj.weight": [("ffn_gate", inner), ("ffn_up", inner)],
        "mlp.down_proj.weight": [("ffn_down", config.hidden_size)],
    }[rest]
    if values.ndim == 1:
        return [(f"blk.{layer}.{parts[0][0]}.weight", values)]
    edges = np.cumsum([width for _, width in parts])[:-1]
    pieces = np.split(values, edges, axis=1)
    return [
        (f"blk.{layer}.{part}.weight", np.ascontiguousarray(piece.T))
        for (part, _), piece in zip(parts, pieces, strict=True)
    ]
