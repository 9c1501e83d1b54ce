"""Tensors that are cheaper to compute again than to keep until the backward pass.

A normalised hidden state or a SwiGLU activation costs one pass over memory to make and is as large
as everything else that a layer keeps. The operator that makes it marks it with the function and
the inputs that made it; the operator that consumes it (a matrix product, for its weight gradient)
keeps those inputs instead. The inputs are kept by the maker's own backward pass in any case.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paddle


@dataclass(frozen=True)
class Recipe:
    """`function(*sources)` gives the tensor again, bit for bit, with gradients off."""

    function: Callable[..., paddle.Tensor]
    sources: tuple[Any, ...]


def mark(tensor: paddle.Tensor, function: Callable[..., paddle.Tensor], *sources: Any) -> paddle.Tensor:
    """`tensor`, which from now on carries how it is made; views and copies of it do not."""
    tensor.remake = Recipe(function, sources)
    return tensor


def keep(tensor: paddle.Tensor) -> Recipe | paddle.Tensor:
    """What to keep instead of `tensor`: its recipe if it has one, else itself."""
    return getattr(tensor, "remake", None) or tensor


@paddle.no_grad()
def restore(kept: Recipe | paddle.Tensor) -> paddle.Tensor:
    """The tensor of which `keep` gave `kept`."""
    return kept.function(*kept.sources) if isinstance(kept, Recipe) else kept
