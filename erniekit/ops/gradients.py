"""Gradients of parameters, summed in fp32 by the operators themselves.

Paddle gives a gradient the type of its parameter: in bf16, and a new tensor for every contribution.
Native operators add theirs to `parameter.main_grad` instead, an fp32 tensor that a matrix product
writes or adds to directly, and give Paddle none. Where an operator leaves the gradient to Paddle it
is in `.grad`; `of` looks at both.

What nobody waits for can be put off: within `put_off` the gradients of matrices are collected as calls
that are made later, so that a pipeline can send the gradient of a stage's input before (`contribute`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import paddle

from erniekit.ops.native.memory import empty


def target(parameter: paddle.Tensor) -> tuple[paddle.Tensor, float]:
    """Where to write the gradient of a weight: an fp32 tensor of its shape, and a factor for what it holds.

    The factor is 1.0 when there is a gradient to add to, and 0.0 when the tensor is new: its memory
    then holds anything and is to be overwritten.
    A weight that is itself computed (no leaf of the graph) gets a tensor of its own; see `hand_over`.
    """
    if not parameter.is_leaf:
        return empty(parameter.shape, dtype="float32"), 0.0
    found = getattr(parameter, "main_grad", None)
    if found is not None:
        return found, 1.0
    parameter.main_grad = empty(parameter.shape, dtype="float32")
    return parameter.main_grad, 0.0


def hand_over(parameter: paddle.Tensor, written: paddle.Tensor) -> paddle.Tensor | None:
    """What a backward pass returns for a weight whose gradient it has written: None for a leaf."""
    if parameter.is_leaf:
        return None
    return written if written.dtype == parameter.dtype else written.astype(parameter.dtype)


# Calls that wait, within `put_off`.
_waiting: list[Callable[[], object]] | None = None


@contextmanager
def put_off() -> Iterator[list[Callable[[], object]]]:
    """Collect the gradients of matrices as calls, each to be made once; forward and backward run within."""
    global _waiting
    before, _waiting = _waiting, []
    try:
        yield _waiting
    finally:
        _waiting = before


def are_put_off() -> bool:
    """Whether operators that leave gradients to Paddle should give them to `contribute` instead."""
    return _waiting is not None


def contribute(
    parameter: paddle.Tensor, give: Callable[[paddle.Tensor], paddle.Tensor]
) -> paddle.Tensor | None:
    """Have `give(parameter)` add the gradient of a weight, now or later; it returns what it has written.

    What `give` holds lives until then. Returns what the backward pass returns for the weight.
    """
    if _waiting is not None and parameter.is_leaf:
        # In a second run of a recomputed function the parameter has a leaf in its place.
        _waiting.append(partial(give, getattr(parameter, "stands_for", parameter)))
        return None
    return hand_over(parameter, give(parameter))


@paddle.no_grad()
def add_up(parameter: paddle.Tensor, found: paddle.Tensor) -> paddle.Tensor:
    """Add a gradient that is a tensor of its own to the main gradient of a leaf; returns it."""
    found = found.astype("float32")
    main = getattr(parameter, "main_grad", None)
    if parameter.is_leaf:
        parameter.main_grad = found if main is None else main.add_(found)
    return found


def of(parameter: paddle.Tensor) -> paddle.Tensor | None:
    """The gradient of a parameter in fp32, or None without one."""
    main = getattr(parameter, "main_grad", None)
    rest = parameter.grad
    if rest is None:
        return main
    rest = rest.astype("float32")
    return rest if main is None else main + rest


def clear(parameter: paddle.Tensor) -> None:
    """Forget the gradient and free its memory."""
    parameter.grad = None  # clear_gradient would keep the memory
    parameter.main_grad = None
