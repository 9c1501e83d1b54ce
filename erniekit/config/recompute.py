"""Recomputation: memory against time, with the same results."""

import re
from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key

# Named operators of a model, in the order of a layer; a model's plan says where each of them is.
OPERATORS = (
    "norm",
    "qkv",
    "rope",
    "core_attention",
    "o_proj",
    "router",
    "dispatch",
    "gate_up",
    "activation",
    "down",
    "shared_experts",
    "head",
    "mtp",
)
_RANGES = re.compile(r"\d+(-\d+)?")
# Upstream's operators of this key; they name what is NOT to be recomputed.
_UPSTREAM = ("mlp_row_ln", "mlp_column_ln", "attention_row_ln", "attention_column_ln", "flash_attn")


def _layer_numbers(text: str) -> str | None:
    """Why `text` is no list of layers, or None."""
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        if not _RANGES.fullmatch(part):
            return f"{part!r} is neither a layer nor a range of layers; write 0,3 or 0-3"
        if last and int(last) < int(first):
            return f"{part!r} runs backwards"
    return None


def _operator_layers(text: str) -> str | None:
    """Why `text` is no list of operators with their layers, or None."""
    seen = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        operator, colon, layers = part.partition(":")
        if operator in _UPSTREAM:
            return f"{operator} is upstream's name of what is kept; name what is recomputed: {_names()}"
        if operator not in OPERATORS:
            return f"there is no operator {operator!r}; write {_names()}"
        if operator in seen:
            return f"{operator} comes twice; join its layers with +, as in {operator}:0-3+8-11"
        seen.add(operator)
        if not colon or layers == "all" or layers.isdecimal():
            continue
        for piece in layers.split("+"):
            first, dash, last = piece.partition("-")
            if not (dash and first.isdecimal() and last.isdecimal()):
                return f"{part!r}: write {operator}:all, {operator}:8 (the first 8) or {operator}:0-3+8-11"
            if int(last) < int(first):
                return f"{part!r}: {piece} runs backwards"
    return None


def _names() -> str:
    return ", ".join(OPERATORS)


@dataclass(frozen=True, kw_only=True)
class Recompute:
    """What is computed again in the backward pass instead of kept; losses and gradients stay, bit by bit."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.parallel.recomputation:choose_recomputation",
        "erniekit.parallel.recompute:apply_recompute",
        "erniekit.estimate.recompute:limit_in_bytes",
    )

    recompute: str = key(
        "false",
        "true: what recompute_granularity says; auto: the cheapest set that fits into memory_limit_gb",
        choices=("false", "true", "auto"),
        synonyms={"no": "false", "off": "false", "0": "false", "yes": "true", "on": "true", "1": "true"},
    )
    recompute_granularity: str = key(
        "full",
        "whole layers, their attention, its core, or the operators of refined_recompute",
        choices=("full", "full_attn", "core_attn", "selective"),
    )
    refined_recompute: str | None = key(
        None,
        "with selective: operator:layers, such as gate_up:all,core_attention:0-5; a plain number is a count "
        "of layers from the first; null means norm, rope, core_attention, router, dispatch, activation",
        comma_list=True,
        check=_operator_layers,
    )
    no_recompute_layers: str | None = key(
        None,
        "layers, counted from 0, of which nothing is recomputed: 0,3 or 0-3",
        comma_list=True,
        check=_layer_numbers,
    )
    memory_limit_gb: float | None = key(
        None, "memory (2^30 bytes) that auto may use; null means 90 % of what is free", above=0.0
    )
    use_recompute_moe: bool = key(False, "with full_attn and core_attn: recompute the experts' layer too")
    use_recompute_mtp: bool = key(False, "recompute the blocks of multi-token prediction")
    use_recompute_loss_fn: bool = key(
        False, "recompute the head and the loss: the head's gradient is not held during the backward pass"
    )
    offload_recompute_inputs: bool = key(
        False, "keep the inputs of what is recomputed in main memory, on a GPU"
    )
