"""Generators seeded for each block of each micro-batch.

One generator that runs through a whole forward pass would have to run through all stages of a pipeline,
one after the other. A block that begins with a seed of its own draws the same numbers wherever it is
computed, and whatever was computed before.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import paddle

_micro_batch = 0
# A prime, and what the generators take.
_STRIDE, _LIMIT = 1_000_003, 1 << 62


def begin_micro_batch(seed: int) -> None:
    """What is drawn from now on is of the micro-batch of this seed, also where it is drawn again."""
    global _micro_batch
    _micro_batch = seed
    paddle.seed(seed % _LIMIT)


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
