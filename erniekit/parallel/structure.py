"""Tensors within arguments and results: tuples, dicts, dataclasses, and lists that receive what is appended.

Recomputation looks through what a function takes and returns, and puts other tensors in the places of
those that it finds.
"""

from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import paddle
from paddle.base.framework import EagerParamBase

# What `tensors_of` looks for.
TENSORS, PARAMETERS, LISTS = 1, 2, 4
ALL = TENSORS | PARAMETERS


def is_parameter(tensor: paddle.Tensor) -> bool:
    """Whether a tensor is a parameter of some layer."""
    return isinstance(tensor, EagerParamBase)


def tensors_of(structure: Any, wanted: int) -> list[paddle.Tensor]:
    """The tensors of a structure in order: plain ones, parameters, and whether those of lists."""
    if isinstance(structure, paddle.Tensor):
        return [structure] if wanted & (PARAMETERS if is_parameter(structure) else TENSORS) else []
    if isinstance(structure, list) and not wanted & LISTS:
        return []
    return [found for part in _parts(structure) for found in tensors_of(part, wanted)]


def lists_of(structure: Any) -> list[list[Any]]:
    """All lists of a structure of arguments."""
    if isinstance(structure, list):
        return [structure]
    return [found for part in _parts(structure) for found in lists_of(part)]


def _parts(structure: Any) -> Iterable[Any]:
    if isinstance(structure, list | tuple):
        return structure
    if isinstance(structure, dict):
        return structure.values()
    if is_dataclass(structure) and not isinstance(structure, type):
        return [getattr(structure, field.name) for field in fields(structure)]
    return ()


def replaced(structure: Any, replace: Callable[[Any], Any], *, of: type = paddle.Tensor) -> Any:
    """A copy of a structure with every `of` replaced; lists become new, empty ones."""
    if isinstance(structure, of):
        return replace(structure)
    if isinstance(structure, list):
        return []
    if isinstance(structure, tuple):
        parts = tuple(replaced(part, replace, of=of) for part in structure)
        changed = any(new is not old for new, old in zip(parts, structure, strict=True))
        return parts if changed else structure
    if isinstance(structure, dict):
        return {key: replaced(part, replace, of=of) for key, part in structure.items()}
    if is_dataclass(structure) and not isinstance(structure, type):
        values = {f.name: replaced(getattr(structure, f.name), replace, of=of) for f in fields(structure)}
        changed = any(values[name] is not getattr(structure, name) for name in values)
        return type(structure)(**values) if changed else structure
    return structure
