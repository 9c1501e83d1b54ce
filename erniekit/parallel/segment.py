"""A function whose intermediate results are not kept for the backward pass but computed again in it.

Forward, the function runs without a graph, and only what its inputs are made of is kept. When its
gradient is due it runs once more, from the same state of the random generators, now with a graph, and
the gradient goes through that. So every operator inside differentiates exactly once, as it would have.

What the function returns may be left to the second run too (`discard`): the result is then marked as
one that can be made again (`ops/remake.py`). Operators that read it keep the mark in its place; where
Paddle's own operators save it, the hooks of `without_discarded` do. The reader's gradient comes first
and makes the second run, from which the function's own gradient follows: still one run.

Conventions: tensors among the arguments (in tuples, dicts and dataclasses as well) are inputs; a list
among them receives what the function appends, and is no input. Parameters that the function finds
elsewhere get their gradients on the way.
"""

import functools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import paddle
from paddle.autograd import PyLayer, saved_tensors_hooks

from erniekit.ops import remake
from erniekit.parallel.structure import (
    ALL,
    LISTS,
    PARAMETERS,
    TENSORS,
    is_parameter,
    lists_of,
    replaced,
    tensors_of,
)

# Whether a second run is under way: it keeps what it needs, since its gradient follows at once.
_second_run = False
# Live results that are not to be kept: address -> (the tensor, how it is made again).
_discarded: dict[int, tuple[Any, remake.Recipe]] = {}


def recomputed(
    function: Callable[..., Any],
    *,
    discard: Sequence[int] = (),
    parameters: Callable[[], Iterable[paddle.Tensor]] = tuple,
    offload: bool = False,
) -> Callable[..., Any]:
    """`function`, which keeps nothing but its inputs; the same results and gradients, bit by bit.

    Without gradients to be taken it is called as it is.

    Args:
        discard: places among the tensors it returns (0 for a single one) that are not kept either.
        parameters: those that it uses, so that they get gradients when no input needs one.
        offload: keep the inputs in main memory, when this runs on a GPU.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _second_run or not paddle.is_grad_enabled():
            return function(*args, **kwargs)
        given = [tensor for tensor in tensors_of((args, kwargs), ALL) if not tensor.stop_gradient]
        if not given and all(parameter.stop_gradient for parameter in parameters()):
            return function(*args, **kwargs)
        run = _Run(function, args, kwargs, offload=offload)
        inputs = [*given, *run.first()]
        if not inputs:
            inputs = [paddle.zeros([])]
            inputs[0].stop_gradient = False
        return run.finish(_Recomputed.apply(run, *inputs), discard)

    return call


def without_discarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, within which Paddle's own operators do not save results that are discarded."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if _second_run or not paddle.is_grad_enabled():
            return function(*args, **kwargs)
        with saved_tensors_hooks(_pack, _unpack):
            return function(*args, **kwargs)

    return call


class _Recomputed(PyLayer):
    @staticmethod
    def forward(ctx: Any, run: "_Run", *inputs: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        ctx.run = run
        ctx.set_materialize_grads(False)
        return run.made()

    @staticmethod
    def backward(ctx: Any, *gradients: paddle.Tensor | None) -> tuple[paddle.Tensor | None, ...]:
        run, ctx.run = ctx.run, None
        found = run.backward(gradients)
        # Only the anchor of a function without inputs, whose gradient nobody reads.
        return found if found else (paddle.zeros([]),)


class _Run:
    """One call of a function: what it is made again from, and what became of it."""

    def __init__(
        self, function: Callable[..., Any], args: Any, kwargs: dict[str, Any], *, offload: bool
    ) -> None:
        self._function = function
        self._given: tuple[Any, Any] | None = (args, kwargs)
        self._generators = paddle.get_rng_state()
        self._offload = offload
        self._kept: tuple[Any, Any] | None = None
        self._shared: list[paddle.Tensor] = []
        self._leaves: list[paddle.Tensor] = []
        self._results: list[paddle.Tensor] | None = None
        self._returned: list[paddle.Tensor] = []
        self._left: list[Any] = []

    def first(self) -> list[paddle.Tensor]:
        """Run without a graph; returns the parameters among the results, which may have uses elsewhere."""
        args, kwargs = self._given or ((), {})
        self._kept = replaced((args, kwargs), lambda tensor: _Kept(tensor, offload=self._offload))
        received = lists_of(self._given)
        mine = replaced((args, kwargs), lambda tensor: tensor)  # lists are new, and empty
        with paddle.no_grad():
            returned = self._function(*mine[0], **mine[1])
        self._given = None
        given = {id(tensor) for tensor in tensors_of((args, kwargs), TENSORS)}
        self._left = [returned, lists_of(mine), received, given]
        found = {id(tensor): tensor for tensor in tensors_of(self._left[:2], PARAMETERS | LISTS)}
        self._shared = [tensor for tensor in found.values() if not tensor.stop_gradient]
        return self._shared

    def made(self) -> tuple[paddle.Tensor, ...]:
        """The results that may get a gradient."""
        found = tensors_of(self._left[:2], TENSORS | LISTS)
        return tuple(tensor for tensor in found if _may_need_gradient(tensor, self._left[3]))

    def finish(self, made: Any, discard: Sequence[int]) -> Any:
        """What the function returned, with the tensors `made` by the graph in their places."""
        fresh = iter(made if isinstance(made, list | tuple) else [made])
        returned, appended, received, given = self._left
        self._left = []

        def place(tensor: paddle.Tensor) -> paddle.Tensor:
            return next(fresh) if _may_need_gradient(tensor, given) else tensor

        returned = replaced(returned, place)
        for target, items in zip(received, appended, strict=True):
            target.extend(replaced(item, place) for item in items)
        self._mark(returned, discard)
        return returned

    def _mark(self, returned: Any, discard: Sequence[int]) -> None:
        tensors = tensors_of(returned, TENSORS)
        for place in discard:
            tensor = tensors[place]
            recipe = remake.Recipe(self.again, (place,))
            tensor.remake = recipe
            address = tensor.data_ptr()
            _discarded[address] = (weakref.ref(tensor, functools.partial(_forget, address)), recipe)

    def again(self, place: int) -> paddle.Tensor:
        """The tensor at a place among the returned ones, from the second run."""
        self._second()
        return self._returned[place].detach()

    def _second(self) -> None:
        if self._results is not None:
            return
        assert self._kept is not None, "a result was asked for after its gradient had been taken"
        restored = replaced(self._kept, lambda kept: kept.restore(), of=_Kept)
        found = tensors_of(restored, TENSORS)
        self._leaves = [tensor for tensor in found if not tensor.stop_gradient]
        with paddle.enable_grad():
            returned, appended = self._call(restored)
        given = {id(tensor) for tensor in tensors_of(restored, TENSORS)}
        self._returned = tensors_of(returned, TENSORS)
        made = tensors_of([returned, appended], TENSORS | LISTS)
        self._results = [tensor for tensor in made if _may_need_gradient(tensor, given)]

    def _call(self, restored: Any) -> tuple[Any, list[list[Any]]]:
        """Run the function from the state of the generators that the first run began with."""
        global _second_run
        now, before = paddle.get_rng_state(), _second_run
        paddle.set_rng_state(self._generators)
        _second_run = True
        try:
            return self._function(*restored[0], **restored[1]), lists_of(restored)
        finally:
            _second_run = before
            paddle.set_rng_state(now)

    def backward(self, gradients: Sequence[paddle.Tensor | None]) -> tuple[paddle.Tensor | None, ...]:
        """Gradients of the inputs from those of the results; parameters get theirs on the way."""
        self._second()
        results, leaves = self._results or [], self._leaves
        self._results, self._leaves, self._returned, self._kept = None, [], [], None
        pairs = [
            (result, gradient)
            for result, gradient in zip(results, gradients, strict=True)
            if gradient is not None and not result.stop_gradient
        ]
        del results
        with _gradients_of(self._shared) as of_shared:
            if pairs:
                paddle.autograd.backward([result for result, _ in pairs], [gradient for _, gradient in pairs])
        for leaf in leaves:
            if hasattr(leaf, "stands_for"):
                leaf.stands_for.main_grad = leaf.main_grad
        return _apart([*map(_gradient, leaves), *(of_shared.get(id(tensor)) for tensor in self._shared)])


class _Kept:
    """What is kept of one input."""

    def __init__(self, tensor: paddle.Tensor, *, offload: bool) -> None:
        self.stop_gradient = tensor.stop_gradient
        self._parameter = tensor if is_parameter(tensor) else None
        if offload and not tensor.stop_gradient and tensor.place.is_gpu_place():
            # Not executed in this project's CI.
            moved = tensor.detach().pin_memory()
            self._recipe = remake.Recipe(lambda pinned: pinned.cuda(), (moved,))
        else:
            self._recipe = remake.keep(tensor)
            if self._recipe.sources and self._recipe.sources[0] is tensor:
                self._recipe = remake.Recipe(self._recipe.function, (tensor.detach(),))

    def restore(self) -> paddle.Tensor:
        """A leaf of the second run's graph."""
        tensor = remake.restore(self._recipe).detach()
        tensor.stop_gradient = self.stop_gradient
        if self._parameter is not None:
            # It may have other uses. Its gradient of this one is for the graph around to add up, in the order
            # in which it would have; or for the operators, where they do.
            tensor.stands_for = self._parameter
            tensor.main_grad = getattr(self._parameter, "main_grad", None)
        return tensor


def _pack(tensor: paddle.Tensor) -> Any:
    """What Paddle is to save in place of a tensor."""
    # Detached, since a result that its own node holds is a circle that only a backward pass undoes.
    found = _discarded.get(tensor.data_ptr()) if tensor.size else None
    original = found[0]() if found is not None else None
    if found is None or original is None or not _same_memory(original, tensor):
        # A leaf is no result. As a parameter it may lose its memory until the backward pass (`sharding.py`).
        return tensor if tensor.is_leaf else tensor.detach()
    return _Packed(found[1], tensor.shape)


def _same_memory(original: paddle.Tensor, view: paddle.Tensor) -> bool:
    """Whether a tensor at the address of another one is it, or all of it in another shape."""
    if original.dtype != view.dtype or original.size != view.size:
        return False
    whole = original.is_contiguous() and view.is_contiguous()
    return whole or (original.shape, original.strides) == (view.shape, view.strides)


def _unpack(saved: Any) -> paddle.Tensor:
    if not isinstance(saved, _Packed):
        return saved
    tensor = remake.restore(saved.recipe)
    return tensor if tensor.shape == saved.shape else tensor.reshape(saved.shape)


class _Packed:
    """A saved tensor that is made again; `shape` is that of the view which was saved."""

    def __init__(self, recipe: remake.Recipe, shape: Sequence[int]) -> None:
        self.recipe, self.shape = recipe, shape


def _forget(address: int, gone: Any) -> None:
    """Drop the entry of a tensor that is no more, unless another one has taken its address."""
    if address in _discarded and _discarded[address][0] is gone:
        del _discarded[address]


def _may_need_gradient(tensor: paddle.Tensor, given: set[int]) -> bool:
    """Whether a returned tensor is differentiable and made by the function: no parameter, no input."""
    return id(tensor) not in given and not is_parameter(tensor) and tensor.is_floating_point()


@contextmanager
def _gradients_of(parameters: Sequence[paddle.Tensor]) -> Iterator[dict[int, paddle.Tensor]]:
    """What Paddle would add to the gradients of parameters, by identity, instead of adding it.

    Their other uses lie outside; the graph around adds all of one backward pass up before it adds them to
    what there is, and so it shall be.
    """
    found: dict[int, paddle.Tensor] = {}

    def take(gradient: paddle.Tensor | None, parameter: paddle.Tensor) -> paddle.Tensor | None:
        if gradient is None:  # the operator has added it itself
            return None
        found[id(parameter)] = gradient
        return paddle.zeros_like(gradient)

    hooks = [
        parameter.register_hook(functools.partial(take, parameter=parameter)) for parameter in parameters
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _gradient(leaf: paddle.Tensor) -> paddle.Tensor | None:
    """None for a parameter whose gradient the operators have added up themselves."""
    if leaf.grad is None and not hasattr(leaf, "stands_for"):
        return paddle.zeros_like(leaf)
    return leaf.grad


def _apart(gradients: list[paddle.Tensor | None]) -> tuple[paddle.Tensor | None, ...]:
    """The same, no two of them in one place: Paddle adds further gradients in place."""
    seen: set[int] = set()
    apart: list[paddle.Tensor | None] = []
    for gradient in gradients:
        if gradient is not None and gradient.size:
            if gradient.data_ptr() in seen:
                gradient = gradient.clone()
            seen.add(gradient.data_ptr())
        apart.append(gradient)
    return tuple(apart)
