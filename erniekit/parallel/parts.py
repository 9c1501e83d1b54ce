"""Parts of a model by their paths, and parameters replaced by what a process holds of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from erniekit.parallel import comm
from erniekit.parallel.placement import Placement, split, whole


def find(root: Any, path: str) -> Any:
    """The part at a dotted path, or None where there is none."""
    for name in path.split("."):
        root = getattr(root, name, None)
        if root is None:
            return None
    return root


def narrow(
    layer: Any,
    name: str,
    axis: int,
    group: comm.Group,
    pieces: Sequence[int] | None = None,
    placed: Placement | None = None,
) -> Placement:
    """Replace a layer's parameter by this process's part of it along an axis; a value it has stays.

    Args:
        pieces: sizes of what is fused along the axis, each of which is split for itself.
        placed: what is here of the parameter already, along other axes.
    """
    parameter = getattr(layer, name)
    own = split(whole(parameter.shape), axis, group.rank, group.size, pieces=pieces)
    zero = paddle.nn.initializer.Constant(0.0)
    with paddle.LazyGuard():
        smaller = layer.create_parameter(
            list(own.part_shape), dtype=parameter.dtype, default_initializer=zero
        )
    smaller.stop_gradient = parameter.stop_gradient
    if parameter._is_initialized():
        smaller.initialize()
        taken = own.take(parameter.astype("float32").numpy())
        smaller.set_value(paddle.to_tensor(taken).astype(parameter.dtype))
    setattr(layer, name, smaller)
    if placed is None:
        return own
    return split(placed, axis, group.rank, group.size, pieces=pieces)


def narrow_along(
    layer: Any,
    kind: str,
    group: comm.Group,
    placements: Mapping[str, Placement],
    before: Mapping[str, Placement] | None = None,
) -> dict[str, Placement]:
    """Split what goes along with a layer's weight, such as the factors of an adapter.

    Args:
        kind: how the weight is split: column, row or experts.
        placements: of what is split so.
        before: of what was split along other axes.

    Returns:
        `placements`, and those of what goes along.
    """
    if not hasattr(layer, "along"):
        return {**placements}
    before = before or {}
    found = {
        name: narrow(layer, name, axis, group, pieces, before.get(name))
        for name, (axis, pieces) in layer.along(kind).items()
    }
    layer.share(kind, group.size, SharedLayer(group, {**before, **placements, **found}))
    return {**placements, **found}


class SharedLayer:
    """What a layer that is split asks of the processes that have its other parts."""

    def __init__(self, group: comm.Group, placements: Mapping[str, Placement]) -> None:
        self._group, self._placements = group, placements

    def part(self, name: str, whole: np.ndarray) -> np.ndarray:
        """This process's part of a whole parameter; all of it where it is not split."""
        return self._placements[name].take(whole) if name in self._placements else whole

    def whole(self, name: str, part: np.ndarray) -> np.ndarray:
        """The whole parameter, of everybody's parts; all processes call it."""
        placement = self._placements[name]
        found = np.empty(placement.shape, part.dtype)
        for blocks in comm.gather_objects(list(placement.give(part)), self._group):
            for start, block in blocks:
                found[tuple(slice(s, s + n) for s, n in zip(start, block.shape, strict=True))] = block
        return found

    def total(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """The sum over the processes."""
        return comm.all_reduce(tensor, self._group)
