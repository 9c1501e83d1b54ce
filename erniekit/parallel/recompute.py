"""Recomputation: which parts of a model keep nothing for the backward pass.

The model does not know. Its plan (`models/<family>/plan.py`) says as data where each named operator
is: the path of a method below a block. Here these methods, on the model that is given, are replaced by
ones that recompute (`segment.py`); nothing else changes, and losses and gradients are the same bit by
bit. What each choice saves and costs is in `estimate/recompute.py`.

| granularity | recomputed of a layer |
|---|---|
| full | everything: only its input is kept |
| full_attn | attention with its projections |
| core_attn | rotation, scores, softmax and weighted sum |
| selective | the operators of `refined_recompute` |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from erniekit.errors import ConfigError
from erniekit.log import logger
from erniekit.parallel.segment import recomputed, without_discarded

# Cheap to compute again beside what they hold; `selective` without a list.
CHEAP = ("norm", "rope", "core_attention", "router", "dispatch", "activation")
# Not below a block: `head` is the objective's, `mtp` are blocks of their own.
OUTSIDE = ("head", "mtp")


class Plan(Protocol):
    """What this file reads of a model's plan."""

    BLOCKS: str
    AHEAD_BLOCKS: str
    # Operator -> paths of methods below a block, each with the places of its results that may be
    # discarded. A path that a block does not have is passed over.
    OPERATORS: Mapping[str, Mapping[str, tuple[int, ...]]]
    WHOLE_ATTENTION: str
    EXPERTS_LAYER: str


@dataclass(frozen=True)
class Recomputation:
    """What is recomputed, layer by layer.

    operators: for every block the operators of it, `("block",)` for all of it, `()` for nothing.
    mtp: whether the blocks of multi-token prediction are, as a whole; head: whether head and loss are.
    named: operators that were asked for by name, so that one which the model does not have is an error.
    """

    operators: tuple[tuple[str, ...], ...]
    mtp: bool = False
    head: bool = False
    named: tuple[str, ...] = ()

    def num_layers(self, operator: str) -> int:
        """Layers of which `operator` is recomputed."""
        return sum(operator in layer for layer in self.operators)

    def words(self) -> str:
        """For people: `gate_up in 12 of 30 layers, head`."""
        names = dict.fromkeys(name for layer in self.operators for name in layer)
        total = len(self.operators)
        parts = [f"{_WORDS.get(name, name)} in {self.num_layers(name)} of {total} layers" for name in names]
        parts += ["multi-token prediction"] * self.mtp + ["head and loss"] * self.head
        return ", ".join(parts) or "nothing"


_WORDS = {"block": "everything", "attention": "attention", "experts": "the experts' layer"}


def choose_recomputation(
    num_layers: int,
    *,
    recompute: str,
    recompute_granularity: str,
    refined_recompute: str | None,
    no_recompute_layers: str | None,
    use_recompute_moe: bool,
    use_recompute_mtp: bool,
    use_recompute_loss_fn: bool,
) -> Recomputation:
    """What the keys ask for, in a model of `num_layers` blocks (`recompute: auto` is chosen elsewhere).

    Raises:
        ConfigError: a layer is named that the model does not have.
    """
    if recompute == "false":
        return Recomputation(((),) * num_layers, use_recompute_mtp, use_recompute_loss_fn)
    left_out = parse_layers("no_recompute_layers", no_recompute_layers or "", num_layers)
    if recompute_granularity == "selective":
        chosen = parse_operators(refined_recompute or ",".join(f"{name}:all" for name in CHEAP), num_layers)
    else:
        name = {"full": "block", "full_attn": "attention", "core_attn": "core_attention"}[
            recompute_granularity
        ]
        chosen = {name: frozenset(range(num_layers))}
        if use_recompute_moe and recompute_granularity != "full":
            chosen["experts"] = chosen[name]
    whole = recompute_granularity == "full"
    return Recomputation(
        tuple(
            tuple(name for name, layers in chosen.items() if layer in layers and name not in OUTSIDE)
            if layer not in left_out
            else ()
            for layer in range(num_layers)
        ),
        mtp=use_recompute_mtp or whole or "mtp" in chosen,
        head=use_recompute_loss_fn or "head" in chosen,
        named=tuple(name for name in chosen if name not in OUTSIDE) if refined_recompute else (),
    )


def parse_operators(text: str, num_layers: int) -> dict[str, frozenset[int]]:
    """`gate_up:all,norm:4,qkv:0-3+8-9` to the layers of each operator; a plain number is a count.

    Raises:
        ConfigError: a layer is named that there is not.
    """
    chosen = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        operator, _, layers = part.partition(":")
        if layers in ("", "all"):
            chosen[operator] = frozenset(range(num_layers))
        elif layers.isdecimal():
            if int(layers) > num_layers:
                raise ConfigError(
                    f"refined_recompute: {part} asks for {layers} layers, and the model has {num_layers}; "
                    f"write {operator}:all"
                )
            chosen[operator] = frozenset(range(int(layers)))
        else:
            chosen[operator] = parse_layers("refined_recompute", layers.replace("+", ","), num_layers)
    return chosen


def parse_layers(key: str, text: str, num_layers: int) -> frozenset[int]:
    """`0,3,8-11` to the numbers of layers.

    Raises:
        ConfigError: a layer is named that there is not.
    """
    numbers: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, _, last = part.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    if numbers and max(numbers) >= num_layers:
        raise ConfigError(
            f"{key}: there is no layer {max(numbers)}; the model has the layers 0 to {num_layers - 1}"
        )
    return frozenset(numbers)


def apply_recompute(
    model: Any, plan: Plan, chosen: Recomputation, *, offload_recompute_inputs: bool = False
) -> list[str]:
    """Make the chosen parts of `model` recompute; returns the paths of the methods that do from now on.

    Raises:
        ConfigError: an operator was named that no block of its layers has.
    """
    blocks = list(_at(model, plan.BLOCKS))
    assert len(blocks) == len(chosen.operators), (len(blocks), len(chosen.operators))
    touched: list[str] = []
    for index, (block, operators) in enumerate(zip(blocks, chosen.operators, strict=True)):
        names = _apply_to_block(block, plan, operators, offload_recompute_inputs)
        touched += [f"{plan.BLOCKS}.{index}.{name}" for name in names]
    for operator in chosen.named:
        paths = _paths(plan, operator)
        if not any(name.endswith(path) for path in paths for name in touched):
            raise ConfigError(
                f"refined_recompute: {operator} is no part of these layers of this model; leave it out"
            )
    if chosen.mtp:
        for index, block in enumerate(_at(model, plan.AHEAD_BLOCKS)):
            names = _apply_to_block(block, plan, ("block",), offload_recompute_inputs)
            touched += [f"{plan.AHEAD_BLOCKS}.{index}.{name}" for name in names]
    if touched:
        logger.info(f"recomputed in the backward pass: {chosen.words()}")
    return touched


def _apply_to_block(block: Any, plan: Plan, operators: Sequence[str], offload: bool) -> list[str]:
    touched = []
    discarding = False
    for operator in operators:
        for path, discard in _paths(plan, operator).items():
            owner_path, _, method = path.rpartition(".")
            owner = _at(block, owner_path) if owner_path else block
            if owner is None or not hasattr(owner, method):
                continue
            _replace(owner, method, partial(recomputed, discard=discard, offload=offload))
            discarding = discarding or bool(discard)
            touched.append(path)
    if discarding:
        block.forward = without_discarded(block.forward)
    return touched


def _replace(owner: Any, method: str, wrap: Callable[..., Any]) -> None:
    parameters = owner.parameters if hasattr(owner, "parameters") else tuple
    setattr(owner, method, wrap(getattr(owner, method), parameters=parameters))


def _paths(plan: Plan, operator: str) -> Mapping[str, tuple[int, ...]]:
    wholes = {
        "block": {"forward": ()},
        "attention": {f"{plan.WHOLE_ATTENTION}.forward": ()},
        "experts": {f"{plan.EXPERTS_LAYER}.forward": ()},
    }
    return wholes[operator] if operator in wholes else plan.OPERATORS[operator]


def _at(root: Any, path: str) -> Any:
    """The part at a dotted path, or None where there is none."""
    for name in path.split("."):
        root = getattr(root, name, None)
        if root is None:
            return None
    return root
