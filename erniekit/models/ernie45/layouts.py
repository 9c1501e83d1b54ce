"""Where every parameter of ERNIE 4.5 dense lies in files: names, shapes, order. Data about layouts, no bytes.

| | in memory, Paddle's files | Hugging Face's files |
|---|---|---|
| linear layers | [in, out] | [out, in] ("turned") |
| attention | `qkv_proj` = [q | k | v] along out | `q_proj`, `k_proj`, `v_proj` |
| MLP | `up_gate_proj` = [gate | up] along out | `gate_proj`, `up_proj` |
| prefix | `model.` (Paddle's files: `ernie.` or `model.`) | `model.` |

A tensor of a file is always some columns of one parameter in memory, turned or not. That is all
that reading, writing and converting need to know.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.plan import EMBEDDING, FUSED, HEAD

LAYOUTS = ("hf", "paddle")


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: the columns [start, stop) of a parameter in memory; turned is [out, in]."""

    name: str
    parameter: str
    start: int
    stop: int
    shape: tuple[int, ...]
    turned: bool


def memory_shapes(config: Ernie45Config) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every parameter in memory, in the order of the model."""
    hidden, inner = config.hidden_size, config.intermediate_size
    query = config.num_attention_heads * config.head_dim
    qkv = sum(piece_sizes(config, "qkv_proj"))
    shapes: dict[str, tuple[int, ...]] = {f"{EMBEDDING}.weight": (config.vocab_size, hidden)}

    def add_linear(name: str, rows: int, columns: int) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        if config.use_bias:
            shapes[f"{name}.bias"] = (columns,)

    for index in range(config.num_hidden_layers):
        block = f"model.layers.{index}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        add_linear(f"{block}.self_attn.qkv_proj", hidden, qkv)
        add_linear(f"{block}.self_attn.o_proj", query, hidden)
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        add_linear(f"{block}.mlp.up_gate_proj", hidden, 2 * inner)
        add_linear(f"{block}.mlp.down_proj", inner, hidden)
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[f"{HEAD}.weight"] = (hidden, config.vocab_size)
    return shapes


def piece_sizes(config: Ernie45Config, fused: str) -> tuple[int, ...]:
    """Output sizes of the pieces of a fused projection."""
    if fused == "qkv_proj":
        key = config.num_key_value_heads * config.head_dim
        return (config.num_attention_heads * config.head_dim, key, key)
    return (config.intermediate_size, config.intermediate_size)


def stored_whole(parameter: str, shape: tuple[int, ...], *, name: str, turned: bool) -> Stored:
    """A parameter stored as one tensor."""
    turned = turned and _is_turnable(parameter, shape)
    return Stored(name, parameter, 0, shape[-1], shape[::-1] if turned else shape, turned)


def stored_pieces(
    parameter: str, shape: tuple[int, ...], config: Ernie45Config, *, turned: bool
) -> list[Stored]:
    """A fused parameter stored as its pieces; empty for parameters that are not fused."""
    pieces: list[Stored] = []
    for fused, names in FUSED.items():
        if f".{fused}." not in parameter:
            continue
        start = 0
        for piece, size in zip(names, piece_sizes(config, fused), strict=True):
            part = (*shape[:-1], size)
            is_turned = turned and len(part) == 2
            pieces.append(
                Stored(
                    parameter.replace(fused, piece),
                    parameter,
                    start,
                    start + size,
                    part[::-1] if is_turned else part,
                    is_turned,
                )
            )
            start += size
    return pieces


def stored_tensors(config: Ernie45Config, layout: str) -> Iterator[Stored]:
    """What the files of a layout hold, in the order of the model."""
    assert layout in LAYOUTS, layout
    for parameter, shape in memory_shapes(config).items():
        if layout == "paddle":
            yield stored_whole(parameter, shape, name=paddle_name(parameter), turned=False)
            continue
        pieces = stored_pieces(parameter, shape, config, turned=True)
        yield from pieces or [stored_whole(parameter, shape, name=parameter, turned=True)]


def paddle_name(parameter: str) -> str:
    """The name of a parameter in Paddle's files."""
    return f"ernie.{parameter.removeprefix('model.')}" if parameter.startswith("model.") else parameter


def plain_name(stored: str) -> str:
    """The name of a stored tensor with the prefix that is used in memory."""
    return f"model.{stored.removeprefix('ernie.')}" if stored.startswith("ernie.") else stored


def _is_turnable(parameter: str, shape: tuple[int, ...]) -> bool:
    """Linear weights are turned; the embedding, norms and biases are the same in every layout."""
    return len(shape) == 2 and not parameter.startswith(EMBEDDING)
