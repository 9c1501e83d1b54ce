"""A complete model folder of a few kilobytes: random weights, a byte-level tokenizer, a chat template.

It is what the commands take as a model, so tests can run them end to end in a second. No Paddle is
needed to write it.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.files import Item, write_tensors
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.weights import memory_shapes, save_layout

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIALS = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>")
NUM_BYTES = 256


def tiny_config(**changes: Any) -> Ernie45Config:
    """Numbers of the tiny model; its vocabulary is the specials and the 256 bytes."""
    numbers: dict[str, Any] = {
        "vocab_size": NUM_BYTES + len(SPECIALS) + 1,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
    }
    return Ernie45Config(**{**numbers, **changes})


def tiny_moe_config(modalities: int = 1, **changes: Any) -> Ernie45MoeConfig:
    """Numbers of a tiny mixture of experts; with two modalities vision has experts of its own."""
    experts: dict[str, Any] = {
        "num_hidden_layers": 3,
        "moe_num_experts": (4, 4)[:modalities],
        "moe_intermediate_size": (24, 8)[:modalities],
        "moe_k": 2,
    }
    return Ernie45MoeConfig(**{**asdict(tiny_config()), **experts, **changes})


def write_tiny_checkpoint(
    folder: Path, config: Ernie45Config | None = None, *, seed: int = 0, template: str | None = TEMPLATE
) -> Path:
    """Write a model folder in the Hugging Face layout, fp32; returns it.

    Args:
        seed: of the weights.
        template: its chat template, None for a model without one.
    """
    config = config or tiny_config()
    folder.mkdir(parents=True, exist_ok=True)
    items = save_layout(_random_weights(config, seed), "hf", config)
    write_tensors(folder, items, max_shard_bytes=10**9, metadata={"format": "pt"})
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    if template is not None:
        settings["chat_template"] = template
    files = {
        "config.json": config.to_json(dtype="float32"),
        "generation_config.json": {"eos_token_id": 2, "do_sample": False},
        "tokenizer.json": _tokenizer(),
        "tokenizer_config.json": settings,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return folder


def _random_weights(config: Ernie45Config, seed: int) -> Iterator[Item]:
    random = np.random.default_rng(seed)
    for name, shape in memory_shapes(config).items():
        scale, shift = (0.3, 0.0) if len(shape) >= 2 else (0.1, 0.0 if name.endswith("bias") else 1.0)
        if name.endswith("e_score_correction_bias"):
            scale = 0.05
        yield name, "F32", random.normal(shift, scale, shape).astype(np.float32)


def _tokenizer() -> dict[str, Any]:
    """tokenizer.json: every byte is a token, spelt as the letter that byte-level BPE gives it."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIALS, *letters))}
    added = [
        {
            "id": index,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for index, token in enumerate(SPECIALS)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
