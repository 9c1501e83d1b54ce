"""Recomputation: which parts of a model keep nothing for the backward pass.

The model does not know. Its plan (`models/<family>/plan.py`) says as data where each named operator
is: the path of a method below a block. Here these methods, on the model that is given, are replaced by
ones that recompute (`segment.py`); nothing else changes, and losses and gradients are the same bit by
bit. What each choice saves and costs is in `estimate/recompute.py`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from erniekit.errors import ConfigError
from erniekit.log import logger
from erniekit.parallel.parts import find
from erniekit.parallel.recomputation import Recomputation
from erniekit.parallel.segment import recomputed, without_discarded


def apply_recompute(
    model: Any,
    plan: Any,
    chosen: Recomputation,
    of_all: Callable[[list[str]], Iterable[str]] | None = None,
    *,
    offload_recompute_inputs: bool = False,
) -> list[str]:
    """Make the chosen parts of `model` recompute; returns the paths of the methods that do from now on.

    Args:
        plan: the family's module: BLOCKS, AHEAD_BLOCKS, ROUTERS, WHOLE_ATTENTION, EXPERTS_LAYER, OPERATORS.
        of_all: adds the paths of processes that have other blocks of the model, where there are some.

    Raises:
        ConfigError: an operator was named that no block of its layers has.
    """
    blocks = list(find(model, plan.BLOCKS))
    assert len(blocks) == len(chosen.operators), (len(blocks), len(chosen.operators))
    touched: list[str] = []
    for index, (block, operators) in enumerate(zip(blocks, chosen.operators, strict=True)):
        names = _apply_to_block(block, plan, operators, offload_recompute_inputs)
        touched += [f"{plan.BLOCKS}.{index}.{name}" for name in names]
    if chosen.mtp:
        for index, block in enumerate(find(model, plan.AHEAD_BLOCKS)):
            names = _apply_to_block(block, plan, ("block",), offload_recompute_inputs)
            touched += [f"{plan.AHEAD_BLOCKS}.{index}.{name}" for name in names]
    found = touched if of_all is None else list(of_all(touched))
    for operator in chosen.named:
        if not any(_is_of(path, operator, plan) for path in found):
            raise ConfigError(
                f"refined_recompute: {operator} is no part of these layers of this model; leave it out"
            )
    if touched:
        logger.info(f"recomputed in the backward pass: {chosen.words()}")
    return touched


def _is_of(path: str, operator: str, plan: Any) -> bool:
    """Whether a method that recomputes now belongs to an operator."""
    if operator == "mtp":
        return path.startswith(plan.AHEAD_BLOCKS)
    return path.endswith(tuple(_paths(plan, operator)))


def _apply_to_block(block: Any, plan: Any, operators: Sequence[str], offload: bool) -> list[str]:
    touched = []
    discarding = False
    for operator in operators:
        if operator == "experts" and find(block, plan.ROUTERS[0]) is None:
            continue
        for path, discard in _paths(plan, operator).items():
            owner_path, _, method = path.rpartition(".")
            owner = find(block, owner_path) if owner_path else block
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


def _paths(plan: Any, operator: str) -> Mapping[str, tuple[int, ...]]:
    wholes = {
        "block": {"forward": ()},
        "attention": {f"{plan.WHOLE_ATTENTION}.forward": ()},
        "experts": {f"{plan.EXPERTS_LAYER}.forward": ()},
    }
    return wholes[operator] if operator in wholes else plan.OPERATORS[operator]
