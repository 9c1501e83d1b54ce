"""Names and layouts of ERNIE 4.5 dense weights: in memory, in Hugging Face files, in Paddle's files.

| | in memory, Paddle's files | Hugging Face's files |
|---|---|---|
| linear layers | [in, out] | [out, in] |
| attention | `qkv_proj` = [q | k | v] along out | `q_proj`, `k_proj`, `v_proj` |
| MLP | `up_gate_proj` = [gate | up] along out | `gate_proj`, `up_proj` |
| prefix | `model.` (Paddle's files: `ernie.` or `model.`) | `model.` |

Everything here copies bits, one tensor at a time, so a round trip gives the same bytes. Which
layout a folder is in follows from names and shapes. No Paddle is needed.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from erniekit.checkpoint.files import TensorFolder, open_tensors
from erniekit.errors import CheckpointError
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.plan import FUSED

Item = tuple[str, str, np.ndarray]
LAYOUTS = ("hf", "paddle")
_LISTED = 8


def memory_shapes(config: Ernie45Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter in memory, in the order of the model."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    qkv = query + 2 * config.num_key_value_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        linears = {
            "self_attn.qkv_proj": (hidden, qkv),
            "self_attn.o_proj": (query, hidden),
            "mlp.up_gate_proj": (hidden, 2 * inner),
            "mlp.down_proj": (inner, hidden),
        }
        for name, shape in linears.items():
            if name == "mlp.up_gate_proj":
                shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
            shapes[f"{block}.{name}.weight"] = shape
            if config.use_bias:
                shapes[f"{block}.{name}.bias"] = (shape[1],)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (hidden, config.vocab_size)
    return shapes


def piece_sizes(config: Ernie45Config, fused: str) -> tuple[int, ...]:
    """Output sizes of the pieces of a fused projection."""
    if fused == "qkv_proj":
        key = config.num_key_value_heads * config.head_dim
        return (config.num_attention_heads * config.head_dim, key, key)
    return (config.intermediate_size, config.intermediate_size)


def detect_layout(tensors: TensorFolder, config: Ernie45Config) -> str:
    """`hf` or `paddle`, from names and shapes alone.

    Fused names exist in Paddle's layout only. With split names the shapes decide: the first linear
    that is not square is [in, out] in Paddle's and [out, in] in Hugging Face's.

    Raises:
        CheckpointError: no tensor tells.
    """
    names = tensors.names()
    if any(f".{fused}." in name for name in names for fused in FUSED):
        return "paddle"
    sizes = dict(zip(FUSED["up_gate_proj"], piece_sizes(config, "up_gate_proj"), strict=True))
    sizes |= dict(zip(FUSED["qkv_proj"], piece_sizes(config, "qkv_proj"), strict=True))
    hidden = config.hidden_size
    for name in names:
        piece = name.rsplit(".", 2)[-2] if name.count(".") > 1 else ""
        if not name.endswith(".weight") or piece not in sizes or sizes[piece] == hidden:
            continue
        shape = tensors.info(name).shape
        if shape == (sizes[piece], hidden):
            return "hf"
        if shape == (hidden, sizes[piece]):
            return "paddle"
    if any(name.startswith("ernie.") for name in names):
        return "paddle"
    if any(name.startswith("model.layers.") for name in names):
        return "hf"
    raise CheckpointError(
        f"{tensors.folder}: these are no weights of an ERNIE 4.5 dense model; tensors look like "
        f"{', '.join(names[:3])}"
    )


def load_weights(folder: Path, config: Ernie45Config) -> Iterator[Item]:
    """Every parameter (name, dtype word, raw bits) in memory layout, in the order of the model.

    Raises:
        CheckpointError: tensors are missing, unexpected, or of another shape; lists them. Nothing
            has been yielded then.
    """
    tensors = open_tensors(folder)
    layout = detect_layout(tensors, config)
    actual = {_plain_name(name): name for name in tensors.names()}
    sources = {name: _sources(name, actual) for name in memory_shapes(config)}
    _check(tensors, config, layout, sources, actual)

    def generate() -> Iterator[Item]:
        for name, pieces in sources.items():
            arrays = [tensors.read(actual[piece]) for piece in pieces]
            if layout == "hf" and arrays[0].ndim == 2 and "embed_tokens" not in name:
                arrays = [array.T for array in arrays]
            joined = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=-1)
            yield name, tensors.info(actual[pieces[0]]).dtype, np.ascontiguousarray(joined)

    return generate()


def save_layout(items: Iterable[Item], layout: str, config: Ernie45Config) -> Iterator[Item]:
    """Tensors in memory layout as they are stored in files of a layout, one by one."""
    assert layout in LAYOUTS, layout
    for name, dtype, array in items:
        if layout == "paddle":
            yield name.replace("model.", "ernie.", 1) if name.startswith("model.") else name, dtype, array
            continue
        for piece, part in _split(name, array, config):
            turned = part.T if part.ndim == 2 and "embed_tokens" not in name else part
            yield piece, dtype, np.ascontiguousarray(turned)


def _plain_name(name: str) -> str:
    return f"model.{name.removeprefix('ernie.')}" if name.startswith("ernie.") else name


def _split(name: str, array: np.ndarray, config: Ernie45Config) -> Iterator[tuple[str, np.ndarray]]:
    for fused, pieces in FUSED.items():
        if f".{fused}." in name:
            start = 0
            for piece, size in zip(pieces, piece_sizes(config, fused), strict=True):
                yield name.replace(fused, piece), array[..., start : start + size]
                start += size
            return
    yield name, array


def _sources(name: str, actual: Mapping[str, str]) -> tuple[str, ...]:
    """The stored tensors that a parameter is made of: itself, or the pieces of a fused one."""
    for fused, pieces in FUSED.items():
        if f".{fused}." in name and name not in actual:
            return tuple(name.replace(fused, piece) for piece in pieces)
    return (name,)


def _check(
    tensors: TensorFolder,
    config: Ernie45Config,
    layout: str,
    sources: Mapping[str, tuple[str, ...]],
    actual: Mapping[str, str],
) -> None:
    problems: list[str] = []
    shapes = memory_shapes(config)
    used: set[str] = set()
    for name, pieces in sources.items():
        sizes: tuple[int, ...] = (shapes[name][-1],)
        if len(pieces) > 1:
            sizes = piece_sizes(config, "qkv_proj" if "qkv_proj" in name else "up_gate_proj")
        for piece, size in zip(pieces, sizes, strict=True):
            used.add(piece)
            if piece not in actual:
                problems.append(f"missing: {piece}")
                continue
            expected = (*shapes[name][:-1], size)
            if layout == "hf" and len(expected) == 2 and "embed_tokens" not in name:
                expected = expected[::-1]
            found = tensors.info(actual[piece]).shape
            if found != expected:
                problems.append(f"shape: {piece} is {list(found)}, config.json asks for {list(expected)}")
    extra = sorted(set(actual) - used)
    if config.tie_word_embeddings and "lm_head.weight" in extra:
        extra.remove("lm_head.weight")
        _check_tied_head(tensors, actual, layout)
    problems += [f"unexpected: {name}" for name in extra if not name.startswith("model.mtp_")]
    if problems:
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        hint = ""
        if any(".experts." in name for name in extra):
            hint = "\nThese are tensors of a mixture-of-experts model, but config.json describes a dense one."
        listing = "\n  ".join(problems[:_LISTED])
        raise CheckpointError(f"{tensors.folder}: the weights do not fit config.json:\n  {listing}{more}{hint}")


def _check_tied_head(tensors: TensorFolder, actual: Mapping[str, str], layout: str) -> None:
    head, table = tensors.read(actual["lm_head.weight"]), tensors.read(actual["model.embed_tokens.weight"])
    if not np.array_equal(head if layout == "hf" else head.T, table):
        raise CheckpointError(
            f"{tensors.folder}: lm_head.weight differs from the embedding, but config.json says "
            "tie_word_embeddings: true; write false there if the head is to be its own"
        )
