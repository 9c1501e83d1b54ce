"""Records of routers that see the tokens of some columns: those of whole rows, as one process makes them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import paddle

from erniekit.errors import UnsupportedError
from erniekit.nn.moe import RouterRecord

_TENSORS = ("logits_NE", "probabilities_NE", "selected_Nk", "combine_weights_Nk")


def record_whole_rows(
    layer: Any,
    gather: Callable[[paddle.Tensor], paddle.Tensor],
    *,
    key: str,
    refused: Mapping[str, bool],
) -> None:
    """Have the routers of a layer of experts record the tokens of all who share the columns of a row.

    Args:
        gather: the columns [B, T, X] of all of them, from those that are here.
        key: what was asked for, in words.
        refused: what else does not go with it, in words, and whether it is there.

    Raises:
        UnsupportedError: what a router does with a token would depend on tokens elsewhere.
    """
    refused = {
        **refused,
        "moe_capacity, which would count the tokens of each part for itself": layer.capacity is not None,
        "a model of two modalities": len(layer.num_experts) > 1,
    }
    for what, present in refused.items():
        if present:
            raise UnsupportedError(f"{key} is not built for {what}")

    def whole(part_NX: paddle.Tensor | None, rows: int) -> paddle.Tensor | None:
        if part_NX is None:
            return None
        columns = part_NX.shape[-1]
        return gather(part_NX.reshape([rows, -1, columns])).reshape([-1, columns])

    def call(x_BTH: paddle.Tensor, types: Any, records: list[Any] | None, index: int) -> paddle.Tensor:
        own: list[RouterRecord] | None = None if records is None else []
        out = forward(x_BTH, types, own, index)
        for record in own or ():
            parts: dict[str, Any] = {name: whole(getattr(record, name), x_BTH.shape[0]) for name in _TENSORS}
            assert records is not None
            records.append(replace(record, **parts))
        return out

    forward = layer.forward
    layer.forward = call
