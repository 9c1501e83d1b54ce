"""Where every parameter of ERNIE 4.5 lies in files: names, shapes, order. Data about layouts, no bytes.

| | in memory | Paddle's files | Hugging Face's files |
|---|---|---|---|
| linear layers | [in, out] | [in, out] | [out, in] ("turned") |
| attention | `qkv_proj` = [q | k | v] along out | the same | `q_proj`, `k_proj`, `v_proj` |
| MLP | `up_gate_proj` = [gate | up] along out | the same | `gate_proj`, `up_proj` |
| experts | `experts.up_gate_proj` [E, in, out] | `experts.J.up_gate_proj` | `experts.J.gate_proj`, ... |
| vision experts | `vision_experts.` [E', in, out] | `experts.J`, J from E on | the same |
| router | `gate.weight` [in, E] | the same | [E, in]; of multimodal models [in, E] |
| prefix | `model.` | `ernie.` or `model.` | `model.` |

transformers 5 keeps experts stacked, `experts.gate_up_proj` [E, out, in], which is read too.

A tensor of a file is always some columns of one parameter in memory, or of the matrix of one expert,
turned or not. That is all that reading, writing and converting need to know.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.plan import AHEAD_BLOCKS, AHEAD_LINEARS, EMBEDDING, FUSED, HEAD

LAYOUTS = ("hf", "paddle")
Shapes = dict[str, tuple[int, ...]]
_EXPERTS, _VISION_EXPERTS = ".mlp.experts.", ".mlp.vision_experts."
_BIAS = ".moe_statics.e_score_correction_bias"


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: the columns [start, stop) of a parameter in memory; turned is [out, in].

    expert: of a parameter [E, in, out] the matrix that it is of; None for all of them, stacked.
    """

    name: str
    parameter: str
    start: int
    stop: int
    shape: tuple[int, ...]
    turned: bool
    expert: int | None = None


def memory_shapes(config: Ernie45Config) -> Shapes:
    """Name -> shape of every parameter in memory, in the order of the model."""
    hidden = config.hidden_size
    shapes: Shapes = {f"{EMBEDDING}.weight": (config.vocab_size, hidden)}
    for index in range(config.num_hidden_layers):
        _add_block(shapes, config, f"model.layers.{index}", index)
    shapes["model.norm.weight"] = (hidden,)
    # A block of multi-token prediction is built as layer 0.
    depths = range(config.num_nextn_predict_layers)
    for depth in depths:
        _add_block(shapes, config, f"{AHEAD_BLOCKS}.{depth}", 0)
    for norm in ("mtp_emb_norm", "mtp_hidden_norm"):
        shapes |= {f"model.{norm}.{depth}.weight": (hidden,) for depth in depths}
    for depth in depths:
        _add_linear(shapes, config, f"{AHEAD_LINEARS}.{depth}", 2 * hidden, hidden)
    if not config.tie_word_embeddings:
        shapes[f"{HEAD}.weight"] = (hidden, config.vocab_size)
    if config.use_bias and isinstance(config, Ernie45MoeConfig):
        shapes[f"{HEAD}.bias"] = (config.vocab_size,)
    return shapes


def _add_linear(shapes: Shapes, config: Ernie45Config, name: str, rows: int, columns: int) -> None:
    shapes[f"{name}.weight"] = (rows, columns)
    if config.use_bias:
        shapes[f"{name}.bias"] = (columns,)


def _add_mlp(shapes: Shapes, config: Ernie45Config, name: str, inner: int) -> None:
    _add_linear(shapes, config, f"{name}.up_gate_proj", config.hidden_size, 2 * inner)
    _add_linear(shapes, config, f"{name}.down_proj", inner, config.hidden_size)


def _add_block(shapes: Shapes, config: Ernie45Config, block: str, layer: int) -> None:
    hidden, query = config.hidden_size, config.num_attention_heads * config.head_dim
    shapes[f"{block}.input_layernorm.weight"] = (hidden,)
    _add_linear(shapes, config, f"{block}.self_attn.qkv_proj", hidden, sum(_qkv_sizes(config)))
    _add_linear(shapes, config, f"{block}.self_attn.o_proj", query, hidden)
    shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
    if not config.is_moe_layer(layer):
        _add_mlp(shapes, config, f"{block}.mlp", config.intermediate_size)
        return
    assert isinstance(config, Ernie45MoeConfig)
    numbers, widths = config.moe_num_experts, config.moe_intermediate_size
    for name, number in zip(("weight", "weight_1"), numbers, strict=False):
        shapes[f"{block}.mlp.gate.{name}"] = (hidden, number)
    shapes[f"{block}.mlp{_BIAS}"] = (len(numbers), max(numbers))
    for infix, number, width in zip((_EXPERTS, _VISION_EXPERTS), numbers, widths, strict=False):
        shapes[f"{block}{infix}up_gate_proj.weight"] = (number, hidden, 2 * width)
        shapes[f"{block}{infix}down_proj.weight"] = (number, width, hidden)
    if config.moe_num_shared_experts:
        _add_mlp(shapes, config, f"{block}.mlp.shared_experts", config.shared_intermediate_size())


def _qkv_sizes(config: Ernie45Config) -> tuple[int, ...]:
    key = config.num_key_value_heads * config.head_dim
    return (config.num_attention_heads * config.head_dim, key, key)


def stored_in_memory(parameter: str, shape: tuple[int, ...]) -> Stored:
    """A parameter as it is in memory."""
    return Stored(parameter, parameter, 0, shape[-1], shape, False)


def stored_whole(
    parameter: str, shape: tuple[int, ...], config: Ernie45Config, *, turned: bool
) -> list[Stored]:
    """A parameter stored as one tensor, of experts one each; fused projections stay fused."""
    turned = turned and _is_turnable(parameter, config)
    if len(shape) == 3:
        first = _first_expert(parameter, config)
        return [
            _part(
                _expert_name(parameter, first + expert), parameter, (0, shape[-1]), shape[1:], turned, expert
            )
            for expert in range(shape[0])
        ]
    return [_part(parameter, parameter, (0, shape[-1]), shape, turned)]


def stored_pieces(
    parameter: str, shape: tuple[int, ...], config: Ernie45Config, *, turned: bool
) -> list[Stored]:
    """A fused parameter stored as its pieces, of experts one set each; empty for what is not fused."""
    pieces: list[Stored] = []
    fused = next((name for name in FUSED if f".{name}." in parameter), None)
    if fused is None:
        return pieces
    half = shape[-1] // 2
    sizes = _qkv_sizes(config) if fused == "qkv_proj" else (half, half)
    for whole in stored_whole(parameter, shape, config, turned=False):
        start = 0
        for piece, size in zip(FUSED[fused], sizes, strict=True):
            name = whole.name.replace(fused, piece)
            columns = (start, start + size)
            pieces.append(_part(name, parameter, columns, (*whole.shape[:-1], size), turned, whole.expert))
            start += size
    return pieces


def stored_stacked(parameter: str, shape: tuple[int, ...]) -> list[Stored]:
    """Experts as transformers 5 has them in memory; empty for everything else."""
    if len(shape) != 3:
        return []
    name = parameter.removesuffix(".weight").replace("up_gate_proj", "gate_up_proj")
    return [Stored(name, parameter, 0, shape[-1], (shape[0], shape[2], shape[1]), True)]


def stored_tensors(config: Ernie45Config, layout: str) -> Iterator[Stored]:
    """What the files of a layout hold, in the order of the model."""
    assert layout in LAYOUTS, layout
    for parameter, shape in memory_shapes(config).items():
        if layout == "hf":
            pieces = stored_pieces(parameter, shape, config, turned=True)
            yield from pieces or stored_whole(parameter, shape, config, turned=True)
            continue
        for whole in stored_whole(parameter, shape, config, turned=False):
            yield renamed(whole, paddle_name(whole.name))


def renamed(stored: Stored, name: str) -> Stored:
    """The same tensor under another name (much quicker than `dataclasses.replace`)."""
    parts = (stored.parameter, stored.start, stored.stop, stored.shape, stored.turned, stored.expert)
    return Stored(name, *parts)


def paddle_name(parameter: str) -> str:
    """The name of a parameter in Paddle's files."""
    return f"ernie.{parameter.removeprefix('model.')}" if parameter.startswith("model.") else parameter


def plain_name(stored: str) -> str:
    """The name of a stored tensor with the prefix that is used in memory."""
    name = f"model.{stored.removeprefix('ernie.')}" if stored.startswith("ernie.") else stored
    return name.replace(f".gate{_BIAS}", _BIAS)  # where transformers 5 has it in memory


def _part(
    name: str,
    parameter: str,
    columns: tuple[int, int],
    shape: tuple[int, ...],
    turned: bool,
    expert: int | None = None,
) -> Stored:
    turned = turned and len(shape) == 2
    return Stored(name, parameter, *columns, shape[::-1] if turned else shape, turned, expert)


def _expert_name(parameter: str, expert: int) -> str:
    for infix in (_EXPERTS, _VISION_EXPERTS):
        parameter = parameter.replace(infix, f"{_EXPERTS}{expert}.")
    return parameter


def _first_expert(parameter: str, config: Ernie45Config) -> int:
    """The number of an expert set's first one in files: those of vision follow those of text."""
    if _VISION_EXPERTS not in parameter:
        return 0
    assert isinstance(config, Ernie45MoeConfig)
    return config.moe_num_experts[0]


def _is_turnable(parameter: str, config: Ernie45Config) -> bool:
    """Linear weights are turned; the embedding, the bias of routers and multimodal routers never are."""
    if parameter.startswith(EMBEDDING) or parameter.endswith(_BIAS):
        return False
    return ".mlp.gate." not in parameter or getattr(config, "num_modalities", 1) == 1
