"""Generators seeded for each block of each micro-batch.

One generator that runs through a whole forward pass would have to run through all stages of a pipeline,
one after the other. A block that begins with a seed of its own draws the same numbers wherever it is
computed, and whatever was computed before.

Processes that hold the same draw the same, so that they go on to hold the same. Those that hold different
parts draw different numbers: of other columns of a row everything (`of_place`), of other heads what is
drawn in attention, and of other rows of a matrix, or experts, what its adapter draws (`apply_own_draws`).
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import paddle

from erniekit.parallel.parts import find

_micro_batch = 0
# A prime, and what the generators take.
_STRIDE, _LIMIT = 1_000_003, 1 << 62
_FAR = 0x9E3779B97F4A7C15


def begin_micro_batch(seed: int) -> None:
    """What is drawn from now on is of the micro-batch of this seed, also where it is drawn again."""
    global _micro_batch
    _micro_batch = seed
    paddle.seed(seed % _LIMIT)


def of_place(seed: int, place: int) -> int:
    """A seed for each place of those that share what `seed` is of; that of place 0 is `seed` itself."""
    return (seed + place * _FAR) % _LIMIT if place else seed


def apply_own_draws(model: Any, plan: Any, place: int) -> None:
    """Have what processes see different parts of draw numbers of its own: attention, and some adapters.

    What is drawn after it is the same everywhere again. `plan` is the family's module: BLOCKS, AHEAD_BLOCKS,
    WHOLE_ATTENTION.
    """
    for path in (plan.BLOCKS, plan.AHEAD_BLOCKS):
        for block in find(model, path) or ():
            attention = find(block, plan.WHOLE_ATTENTION)
            attention.core_attention = _drawing_apart(attention, attention.core_attention, place)
    for layer in model.sublayers():
        if getattr(layer, "sees_apart", False):
            layer.drop = _drawing_apart(layer, layer.drop, place)


def _drawing_apart(layer: Any, forward: Callable[..., Any], place: int) -> Callable[..., Any]:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and layer.dropout):
            return forward(*args, **kwargs)
        # Drawn alike everywhere, and again when this is recomputed.
        drawn = int(paddle.randint(0, (1 << 31) - 1, [1]))
        generators = paddle.get_rng_state()
        paddle.seed(of_place(drawn, place + 1))
        try:
            return forward(*args, **kwargs)
        finally:
            paddle.set_rng_state(generators)

    return call


def apply_seeds(model: Any, plan: Any) -> list[str]:
    """Have every block begin with a seed of its own; returns the paths of the methods that do.

    `plan` is the family's module: BLOCKS, AHEAD_BLOCKS. A block that is in evaluation mode draws nothing.
    """
    touched: list[str] = []
    for path in (plan.BLOCKS, plan.AHEAD_BLOCKS):
        owner = model
        for name in path.split("."):
            owner = getattr(owner, name)
        for index, block in enumerate(owner):
            block.forward = _seeded(block, block.forward, len(touched))
            touched.append(f"{path}.{index}.forward")
    return touched


def _seeded(block: Any, forward: Callable[..., Any], number: int) -> Callable[..., Any]:
    @wraps(forward)
    def call(*args: Any, **kwargs: Any) -> Any:
        if block.training:
            paddle.seed((_micro_batch * _STRIDE + number + 1) % _LIMIT)
        return forward(*args, **kwargs)

    return call
