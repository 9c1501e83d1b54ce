"""Sizes of an adapter before it is built: the matrices that `lora_target` gives to a model, without Paddle.

The words are those of `adapters/targets.py`, which chooses in a built model; a test compares the two.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

DEFAULT = ("qkv_proj", "o_proj", "up_gate_proj", "down_proj")
_WORDS = {"all-linear": "linear", "experts": "experts", "router": "router", "head": "head"}
_ASKED = {
    "experts": re.compile(r"(?<!shared_)experts"),
    "router": re.compile(r"(?<![a-z_])(gate|router)(?![a-z_])"),
    "head": re.compile(r"head"),
}


def adapter_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    parts: Any,
    layout: Callable[[str, tuple[int, ...]], tuple[Sequence[Any], Sequence[Any]]],
    *,
    lora_rank: int,
    lora_target: Sequence[str] = (),
) -> dict[str, tuple[int, ...]]:
    """Shapes of the factors, `MODULE.lora_A` and `MODULE.lora_B`, by the shapes of a model's parameters.

    Args:
        parts: the family's `plan` module.
        layout: what a parameter's matrices are called in files, whole and in pieces.
    """
    found = {}
    for name, shape in shapes.items():
        module, _, own = name.rpartition(".")
        kind = _kind(module, own, parts)
        if kind is None:
            continue
        whole, pieces = layout(name, shape)
        stem = module.rpartition(".")[0]
        # Of experts, who all have the same pieces, those of the first.
        columns = {
            f"{stem}.{piece.name.removesuffix('.weight').rpartition('.')[2]}": piece.stop - piece.start
            for piece in pieces or whole
            if piece.expert in (None, (pieces or whole)[0].expert)
        }
        chosen = [
            width
            for piece, width in columns.items()
            if any(_chooses(pattern, kind, module, piece) for pattern in lora_target or DEFAULT)
        ]
        if chosen:
            *stacked, rows = shape[:-1]
            found[f"{module}.lora_A"] = (*stacked, rows, len(chosen) * lora_rank)
            found[f"{module}.lora_B"] = (*stacked, lora_rank, sum(chosen))
    return found


def _kind(module: str, own: str, parts: Any) -> str | None:
    if own.startswith("weight") and module.endswith("mlp.gate"):
        return "router"
    if own != "weight":
        return None
    if module == parts.HEAD:
        return "head"
    if any(module.endswith(experts) for experts in parts.EXPERTS):
        return "experts"
    linears = (*parts.LINEARS, *parts.SHARED_EXPERTS)
    is_linear = any(module.endswith(linear) for linear in linears) or module.startswith(parts.AHEAD_LINEARS)
    return "linear" if is_linear else None


def _chooses(pattern: str, kind: str, module: str, piece: str) -> bool:
    if pattern in _WORDS:
        return _WORDS[pattern] == kind
    if kind != "linear" and not _ASKED[kind].search(pattern):
        return False
    if re.fullmatch(r"[\w.]+", pattern):
        return any(f".{pattern}." in f".{name}." for name in (module, piece))
    return any(re.search(pattern, name) for name in (module, piece))
