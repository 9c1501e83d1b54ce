"""Which matrices get an adapter: `lora_target` against the names of a model.

A word without special characters is one or more whole parts of names: `q_proj` is every query
projection, `mlp.down_proj` and `layers.0` what they say; the name of a fused weight (`qkv_proj`) is
all its pieces.
Anything else is a regular expression that has to be found in a name. Experts, routers and the
output layer are chosen only by an entry that speaks of them, since an adapter for each expert, or on
what decides between them, is rarely what `all-linear` was to mean.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from erniekit.adapters.layers import Adapted, Piece
from erniekit.errors import ConfigError
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices, Gate

# What is adapted when lora_target is empty.
DEFAULT = ("qkv_proj", "o_proj", "up_gate_proj", "down_proj")
ALL, EXPERTS, ROUTER, HEAD = "all-linear", "experts", "router", "head"
WORDS = (ALL, EXPERTS, ROUTER, HEAD)
_ASKED = {
    EXPERTS: re.compile(r"(?<!shared_)experts"),
    ROUTER: re.compile(r"(?<![a-z_])(gate|router)(?![a-z_])"),
    HEAD: re.compile(r"head"),
}
_NAME = re.compile(r"[\w.]+")
_LISTED = 12

# (parameter, shape) -> (names of the whole weight in files, names of its pieces)
Layout = Callable[[str, tuple[int, ...]], tuple[Sequence[Any], Sequence[Any]]]


@dataclass(frozen=True)
class Target:
    """A layer that gets an adapter, and the pieces of its weight that it is for."""

    module: str
    layer: Any
    kind: str
    pieces: tuple[Piece, ...]


def find_targets(model: Any, layout: Layout, lora_target: Sequence[str]) -> list[Target]:
    """The layers that `lora_target` (empty: DEFAULT) chooses.

    Raises:
        ConfigError: an entry is no regular expression, or chooses nothing; lists what there is.
    """
    candidates = [
        found for name, layer in model.named_sublayers() if (found := _candidate(name, layer, layout))
    ]
    chosen: dict[str, dict[Piece, None]] = {}
    for pattern in lora_target or DEFAULT:
        hits = 0
        for candidate in candidates:
            for piece in candidate.pieces:
                if _chooses(pattern, candidate, piece):
                    chosen.setdefault(candidate.module, {})[piece] = None
                    hits += 1
        if not hits and lora_target:
            raise ConfigError(f"lora_target: '{pattern}' matches no matrix; {_listing(candidates)}")
    targets = []
    for candidate in candidates:
        if candidate.module in chosen:
            pieces = tuple(piece for piece in candidate.pieces if piece in chosen[candidate.module])
            targets.append(Target(candidate.module, candidate.layer, candidate.kind, pieces))
    if not targets:
        raise ConfigError(f"lora_target: {', '.join(DEFAULT)} match no matrix; {_listing(candidates)}")
    return targets


def _candidate(module: str, layer: Any, layout: Layout) -> Target | None:
    kind = _kind(module, layer)
    if kind is None:
        return None
    parameter = f"{module}.weight"
    whole, pieces = layout(parameter, tuple(layer.weight.shape))
    found = [
        Piece(stored.name.removesuffix(".weight"), stored.start, stored.stop, stored.expert)
        for stored in (pieces or whole)
    ]
    return Target(module, layer, kind, tuple(found))


def _kind(module: str, layer: Any) -> str | None:
    assert not isinstance(layer, Adapted), f"{module} has an adapter already"
    if isinstance(layer, ExpertMatrices):
        return EXPERTS
    if isinstance(layer, Gate):
        return ROUTER
    if isinstance(layer, Linear):
        return HEAD if module.rpartition(".")[2].endswith("head") else "linear"
    return None


def _chooses(pattern: str, target: Target, piece: Piece) -> bool:
    if pattern == ALL:
        return target.kind == "linear"
    if pattern in WORDS:
        return target.kind == pattern
    if target.kind != "linear" and not _ASKED[target.kind].search(pattern):
        return False
    names = (target.module, generic_name(target.module, piece))
    if _NAME.fullmatch(pattern):
        return any(f".{pattern}." in f".{name}." for name in names)
    try:
        return any(re.search(pattern, name) for name in names)
    except re.error as error:
        raise ConfigError(f"lora_target: {pattern!r} is not a regular expression ({error})") from error


def generic_name(module: str, piece: Piece) -> str:
    """The name of a piece beside its module: no number of an expert."""
    return f"{module.rpartition('.')[0]}.{piece.name.rpartition('.')[2]}".removeprefix(".")


def _listing(candidates: Sequence[Target]) -> str:
    """What could have been chosen, by the last parts of names."""
    ends = dict.fromkeys(
        re.sub(r".*\.\d+\.", "", generic_name(candidate.module, piece))
        for candidate in candidates
        for piece in candidate.pieces
    )
    listed = ", ".join(list(ends)[:_LISTED])
    words = ", ".join(WORDS)
    example = candidates[-1].module if candidates else "none"
    return (
        f"names end in {listed} (the last is {example}); the names of fused weights, regular expressions, "
        f"and {words} work too"
    )
