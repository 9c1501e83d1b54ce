"""An adapter folded into weights that pass by, tensor by tensor, without a model and without Paddle.

The sum W + scale A B is made in fp32 and handed on in fp32, so that whoever writes it rounds once.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from erniekit.checkpoint.adapter_files import Adapter, Pair, widened
from erniekit.errors import CheckpointError


class Merge:
    """Folds the adapter of a folder into parameters in memory layout.

    Args:
        layout: what a parameter's matrices are called in files, whole and in pieces.
    """

    def __init__(self, adapter: Adapter, layout: Any) -> None:
        self._adapter, self._layout = adapter, layout
        self._pairs = {pair.name: pair for pair in adapter.pairs()}
        self._whole = adapter.whole_tensors()
        self._used: set[str] = set()

    def of(self, parameter: str, dtype: str, array: np.ndarray) -> np.ndarray | None:
        """The parameter with the adapter as fp32, or None where the adapter does not touch it."""
        if not parameter.endswith(".weight"):
            return None
        whole, pieces = self._layout(parameter, array.shape)
        merged: np.ndarray | None = None
        for stored in pieces or whole:
            given = self._replaced(stored)
            pair, columns = (None, slice(0)) if given is not None else self._pair(stored, whole)
            if given is None and pair is None:
                continue
            if merged is None:
                merged = widened(array, dtype, parameter).copy()
            matrix = merged if stored.expert is None else merged[stored.expert]
            part = matrix[..., stored.start : stored.stop]
            if pair is not None:
                given = _sum(part, pair, columns, where=f"{self._adapter.folder}: {pair.name}")
            assert given is not None
            if given.shape != part.shape:
                raise CheckpointError(
                    f"{self._adapter.folder}: {stored.name} is {list(given.shape)}, and the model's is "
                    f"{list(part.shape)}: the adapter is of another model"
                )
            part[...] = given
        return merged

    def check_all_used(self) -> None:
        """Refuse an adapter that has factors for what the model does not have.

        Raises:
            CheckpointError: names the first of them.
        """
        rest = sorted((set(self._pairs) | set(self._whole)) - self._used - {"lm_head.weight"})
        if rest:
            raise CheckpointError(
                f"{self._adapter.folder}: the adapter has {rest[0]}, which this model does not have: it is "
                "of another model"
            )

    def _replaced(self, stored: Any) -> np.ndarray | None:
        """The whole tensor that the adapter has in place of the model's."""
        key = self._whole.get(stored.name)
        if key is None:
            return None
        self._used.add(stored.name)
        given = self._adapter.read(key)
        return given.T if stored.turned and self._adapter.turned else given

    def _pair(self, stored: Any, whole: Sequence[Any]) -> tuple[Pair | None, slice]:
        """The factors for a piece, by its own name or as columns of the fused weight's."""
        own = stored.name.removesuffix(".weight")
        fused = next(w.name.removesuffix(".weight") for w in whole if w.expert == stored.expert)
        for name, columns in (
            (own, slice(0, stored.stop - stored.start)),
            (fused, slice(stored.start, stored.stop)),
        ):
            if name in self._pairs:
                self._used.add(name)
                return self._pairs[name], columns
        return None, slice(0)


def _sum(weight: np.ndarray, pair: Pair, columns: slice, *, where: str) -> np.ndarray:
    b = pair.b[:, columns]
    if (pair.a.shape[0], b.shape[1]) != weight.shape:
        raise CheckpointError(
            f"{where} is for a matrix [{pair.a.shape[0]}, {pair.b.shape[1]}], and the model's is "
            f"{list(weight.shape)}: the adapter is of another model"
        )
    merged = weight + np.float32(pair.scale) * (pair.a @ b)
    if pair.magnitude is not None:
        merged *= pair.magnitude[columns] / np.linalg.norm(merged, axis=0)
    return merged
