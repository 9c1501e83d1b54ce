"""The blocks of a model, watched: told before and after each of their forward and backward passes.

Their forward method is replaced on the model that is given, around whatever is around it already
(recomputation runs within). Backward passes are seen by the gradients that pass between blocks: that of a
result begins one, and those of all inputs end it. A block whose inputs need no gradient has no end.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import paddle

from erniekit.parallel.parts import find


class Watcher(Protocol):
    """Is told by the place of a block among those of `blocks_of`."""

    def before_forward(self, block: int) -> None: ...
    def after_forward(self, block: int) -> None: ...
    def before_backward(self, block: int) -> None: ...
    def after_backward(self, block: int) -> None: ...


def paths_of_blocks(model: Any, plan: Any) -> list[str]:
    """Of the model's blocks, in the order of the forward pass."""
    lists = (plan.BLOCKS, plan.AHEAD_BLOCKS)
    return [f"{path}.{index}" for path in lists for index in range(len(find(model, path) or ()))]


def watch_blocks(model: Any, plan: Any, watcher: Watcher) -> None:
    """Tell `watcher` of every block."""
    for number, path in enumerate(paths_of_blocks(model, plan)):
        owner, _, index = path.rpartition(".")
        block = find(model, owner)[int(index)]
        block.forward = _watched(block.forward, number, watcher)


def _watched(forward: Callable[..., Any], block: int, watcher: Watcher) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        watcher.before_forward(block)
        inputs = [one for one in args if isinstance(one, paddle.Tensor) and not one.stop_gradient]
        results = forward(*args, **kwargs)
        watcher.after_forward(block)
        if paddle.is_grad_enabled():
            _when_gradients_come(results, 1, lambda: watcher.before_backward(block))
            _when_gradients_come(inputs, len(inputs), lambda: watcher.after_backward(block))
        return results

    return call


def _when_gradients_come(tensors: Sequence[Any], number: int, tell: Callable[[], None]) -> None:
    """Call `tell` once, when so many of the tensors have their gradient."""
    missing = number

    def count(_: Any) -> None:
        nonlocal missing
        missing -= 1
        if missing == 0:
            tell()

    for tensor in tensors:
        if not tensor.stop_gradient:
            tensor.register_hook(count)
