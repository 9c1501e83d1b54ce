"""Parts of a model by their paths, and parameters replaced by what a process holds of them."""

from collections.abc import Sequence
from typing import Any

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
    layer: Any, name: str, axis: int, group: comm.Group, pieces: Sequence[int] | None = None
) -> Placement:
    """Replace a layer's parameter by this process's part of it along an axis, without a value yet.

    Args:
        pieces: sizes of what is fused along the axis, each of which is split for itself.
    """
    parameter = getattr(layer, name)
    placement = split(whole(parameter.shape), axis, group.rank, group.size, pieces=pieces)
    zero = paddle.nn.initializer.Constant(0.0)
    smaller = layer.create_parameter(
        list(placement.part_shape), dtype=parameter.dtype, default_initializer=zero
    )
    smaller.stop_gradient = parameter.stop_gradient
    setattr(layer, name, smaller)
    return placement
