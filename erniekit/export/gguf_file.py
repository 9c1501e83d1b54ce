"""A model as one GGUF file for llama.cpp: numbers of the model, vocabulary, tensors, one at a time.

The `gguf` package writes and reads the container; it is imported when a file is written.
"""

import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from erniekit.checkpoint.files import Item
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.export.gguf_numbers import NUMBERS, number_of, pack
from erniekit.export.gguf_tensors import has_experts, is_left_out, pieces, taken
from erniekit.export.gguf_vocabulary import Vocabulary
from erniekit.models.registry import load_family

DENSE, EXPERTS = "ernie4_5", "ernie4_5-moe"


@dataclass(frozen=True)
class Speech:
    """What belongs to the vocabulary of a model: tokens that end an answer, and the chat template."""

    vocabulary: Vocabulary
    ends: tuple[int, ...]
    template: str | None = None


@dataclass(frozen=True)
class Written:
    """A finished file: numbers in its tensors, bytes of them, and how many have which type."""

    num_parameters: int
    num_bytes: int
    types: dict[str, int]


def require_gguf() -> Any:
    """The `gguf` package.

    Raises:
        UnsupportedError: it is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise UnsupportedError(
            "export_layout: gguf needs the package gguf, which is not installed; "
            "write: pip install 'erniekit[gguf]'"
        ) from error
    return gguf


def write_gguf(
    path: Path, config: Any, items: Iterable[Item], word: str, *, name: str, speech: Speech | None
) -> Written:
    """Write a file, and read its tensors back.

    Args:
        items: every parameter in memory, fp32.
        word: a row of `gguf_numbers.NUMBERS`.
        name: what the model is called.
        speech: None for a file without a vocabulary, which only takes ids.

    Raises:
        CheckpointError: a tensor reads back differently than it was written.
        UnsupportedError: the package is missing.
    """
    gguf = require_gguf()
    writer = gguf.GGUFWriter(str(path), EXPERTS if has_experts(config) else DENSE)
    writer.add_name(name)
    writer.add_file_type(gguf.LlamaFileType[NUMBERS[word][2]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_numbers(writer, config)
    if speech is None:
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
    else:
        _add_speech(writer, config, speech)
    types = _announce(writer, config, word)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    sums: dict[str, int] = {}
    for parameter, _, values in items:
        for tensor, piece in () if is_left_out(parameter) else taken(parameter, values, config):
            packed = pack(piece, types[tensor])
            writer.write_tensor_data(packed)
            sums[tensor] = zlib.crc32(packed.tobytes())
    writer.close()
    return _read_back(path, types, sums)


def _announce(writer: Any, config: Any, word: str) -> dict[str, str]:
    """Tell the writer of every tensor, in the order in which they will come; returns their types."""
    import gguf
    import numpy as np

    types: dict[str, str] = {}
    for parameter, whole in load_family(config).weights.memory_shapes(config).items():
        for tensor, shape, _ in () if is_left_out(parameter) else pieces(parameter, whole, config):
            number = types[tensor] = number_of(tensor, shape, word)
            kind = gguf.GGMLQuantizationType[number]
            size = prod(gguf.quant_shape_to_byte_shape(shape, kind))
            writer.add_tensor_info(tensor, shape, np.dtype(np.float32), size, raw_dtype=kind)
    return types


def _read_back(path: Path, types: dict[str, str], sums: dict[str, int]) -> Written:
    import gguf

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    if found.keys() != types.keys():
        raise CheckpointError(f"{path}: holds other tensors than were written")
    for name, tensor in found.items():
        if tensor.tensor_type.name != types[name] or zlib.crc32(tensor.data.tobytes()) != sums[name]:
            raise CheckpointError(f"{path}: tensor {name} reads back differently than it was written")
    return Written(
        num_parameters=int(sum(tensor.n_elements for tensor in found.values())),
        num_bytes=int(sum(tensor.n_bytes for tensor in found.values())),
        types=dict(Counter(types.values()).most_common()),
    )


def _add_numbers(writer: Any, config: Any) -> None:
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
    if not has_experts(config):
        return
    inner = config.moe_intermediate_size[0]
    writer.add_expert_count(config.moe_num_experts[0])
    writer.add_expert_used_count(config.moe_k)
    writer.add_interleave_moe_layer_step(config.moe_layer_interval)
    writer.add_leading_dense_block_count(min(config.moe_layer_start_index))
    writer.add_expert_feed_forward_length(inner)
    if config.moe_num_shared_experts:
        writer.add_expert_shared_count(config.moe_num_shared_experts)
        writer.add_expert_shared_feed_forward_length(config.moe_num_shared_experts * inner)


def _add_speech(writer: Any, config: Any, speech: Speech) -> None:
    vocabulary = speech.vocabulary
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.splitter is not None:
        writer.add_tokenizer_pre(vocabulary.splitter)
        writer.add_token_merges(vocabulary.merges)
    if vocabulary.adds_space is not None:
        writer.add_add_space_prefix(vocabulary.adds_space)
    # What the chat template renders is what the model sees: nothing is added to it.
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    if config.bos_token_id is not None:
        writer.add_bos_token_id(config.bos_token_id)
    if config.pad_token_id is not None:
        writer.add_pad_token_id(config.pad_token_id)
    for add, token in zip((writer.add_eos_token_id, writer.add_eot_token_id), speech.ends, strict=False):
        add(token)
    if speech.template is not None:
        writer.add_chat_template(speech.template)
