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


def keep(tensor: paddle.Tensor) -> Recipe:
    """What to keep instead of `tensor`: its recipe if it has one, else one that holds the tensor itself.

    (A PyLayer takes every tensor among its arguments for an input; a recipe it leaves alone.)
    """
    return getattr(tensor, "remake", None) or Recipe(_itself, (tensor,))


def restore(kept: Recipe) -> paddle.Tensor:
    """The tensor of which `keep` gave `kept`."""
    # Not as a decorator: recipes nest, and Paddle's decorator forgets the outer state in a recursion.
    with paddle.no_grad():
        return kept.function(*kept.sources)


def _itself(tensor: paddle.Tensor) -> paddle.Tensor:
    return tensor
