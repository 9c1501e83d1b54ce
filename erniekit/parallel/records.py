"""Records of routers that see the tokens of some columns: those of whole rows, as one process makes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import paddle

from erniekit.errors import UnsupportedError
from erniekit.nn.moe import TEXT, VISION, RouterRecord

_TENSORS = ("logits_NE", "probabilities_NE", "selected_Nk", "combine_weights_Nk")
Turn = Callable[[paddle.Tensor], paddle.Tensor]


def record_whole_rows(layer: Any, own: Turn, gather: Turn, *, key: str, refused: Mapping[str, bool]) -> None:
    """Have the routers of a layer of experts record the tokens of all who share the columns of a row.

    Args:
        own: the columns that are here, of types [B, T] of whole rows.
        gather: the columns [B, T, X] of all of them, from those that are here.
        key: what was asked for, in words.
        refused: what does not go with it, in words, and whether it is there.

    Raises:
        UnsupportedError: what a router does with a token would depend on tokens elsewhere.
    """
    refused = {
        **refused,
        "moe_capacity, which would count the tokens of each part for itself": layer.capacity is not None,
    }
    for what, present in refused.items():
        if present:
            raise UnsupportedError(f"{key} is not built for {what}")

    sharing = _Sharing(layer, layer.forward, own, gather)
    layer.forward = sharing.forward


@dataclass(frozen=True)
class _Sharing:
    """A layer whose `inner` forward pass records what is here, and the ways to and from whole rows."""

    layer: Any
    inner: Callable[..., paddle.Tensor]
    own: Turn
    gather: Turn

    def forward(
        self, x_BTH: paddle.Tensor, types_BT: paddle.Tensor | None, records: list[Any] | None, index: int
    ) -> paddle.Tensor:
        """That of the layer, with `types_BT` and `records` of whole rows."""
        if records is None:
            return self.inner(x_BTH, None if types_BT is None else self.own(types_BT), None, index)
        found: list[RouterRecord] = []
        if types_BT is None:
            out = self.inner(x_BTH, None, found, index)
            records.append(self._whole(x_BTH, None, found[0], self._tensors(found[0])))
            return out
        types_N, own_types_BT = types_BT.flatten(), self.own(types_BT)
        out = self.inner(x_BTH, own_types_BT, found, index)
        for modality in (TEXT, VISION):
            rows_N = paddle.nonzero((types_N != TEXT) == (modality == VISION)).flatten()
            if not rows_N.shape[0]:
                continue
            record = next((each for each in found if each.modality == modality), None)
            if record is None:
                record = self._nothing(x_BTH, modality, index)
            some_N = None if rows_N.shape[0] == types_N.shape[0] else rows_N
            record = replace(record, token_types_N=paddle.gather(types_N, rows_N))
            records.append(self._whole(x_BTH, some_N, record, self._tensors(record, own_types_BT.size)))
        return out

    def _nothing(self, x_BTH: paddle.Tensor, modality: int, index: int) -> RouterRecord:
        """Zeros as the record of the first column, where no token of a modality is here."""
        gate_HE, top_k = self.layer.gate.matrix(modality), self.layer.routing["top_k"]
        # Functions of what others' records are functions of, so that all meet in the backward pass.
        nothing = (x_BTH.astype("float32").sum() + gate_HE.sum()) * 0.0
        logits_1E, weights_1k = (paddle.zeros([1, wide]) + nothing for wide in (gate_HE.shape[1], top_k))
        first_1, chosen_1k = paddle.zeros([1], "int64"), paddle.zeros([1, top_k], "int64")
        bias_E = self.layer.moe_statics.row(modality)
        tensors = (logits_1E, logits_1E, chosen_1k, weights_1k)
        return RouterRecord(index, modality, *tensors, None, first_1, None, gate_HE, bias_E)

    def _whole(
        self,
        x_BTH: paddle.Tensor,
        rows_N: paddle.Tensor | None,
        record: RouterRecord,
        tensors: list[paddle.Tensor],
    ) -> RouterRecord:
        """The record of some rows of all columns, from tensors of all columns that are here."""
        whole = []
        for each_NX in tensors:
            width = each_NX.shape[-1]
            each_NX = self.gather(each_NX.reshape([x_BTH.shape[0], -1, width])).reshape([-1, width])
            whole.append(each_NX if rows_N is None else paddle.gather(each_NX, rows_N))
        return replace(record, rows_N=rows_N, **dict(zip(_TENSORS, whole, strict=True)))

    def _tensors(self, record: RouterRecord, total: int | None = None) -> list[paddle.Tensor]:
        """What is recorded, with zeros at those of `total` tokens that are of the other modality."""
        tensors = [getattr(record, name) for name in _TENSORS]
        if record.rows_N is None:
            return tensors
        assert total is not None
        count = record.rows_N.shape[0]
        places_N = paddle.full([total], count, "int64")
        places_N[record.rows_N] = paddle.arange(count, dtype="int64")
        zeros = [paddle.zeros([1, each.shape[-1]], each.dtype) for each in tensors]
        return [paddle.gather(paddle.concat(both), places_N) for both in zip(tensors, zeros, strict=True)]
