"""What is seen of the inputs of matrices, and of keys and values, while calibration data passes a block.

M rows, I features, K key heads, D head dimension
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from erniekit.nn.moe import ExpertMatrices
from erniekit.quant.rtn import Inputs

# Rows of the inputs of a matrix that are kept, at most.
_SAMPLE = 512


class _Collected:
    """Sums over the inputs of one matrix."""

    def __init__(self, features: int) -> None:
        self.moment = np.zeros((features, features))
        self.largest = np.zeros(features, np.float32)
        self.count = 0
        self.sample: list[np.ndarray] = []

    def add(self, rows_MI: np.ndarray) -> None:
        if not len(rows_MI):
            return
        self.moment += rows_MI.T @ rows_MI
        self.largest = np.maximum(self.largest, np.abs(rows_MI).max(0))
        self.count += len(rows_MI)
        # The same number of rows of every batch, evenly spaced, and in the end evenly thinned.
        self.sample.append(rows_MI[:: max(1, len(rows_MI) // (_SAMPLE // 4))])

    def inputs(self) -> Inputs:
        features = len(self.largest)
        rows = np.concatenate(self.sample) if self.sample else np.zeros((0, features), np.float32)
        return Inputs(self.moment, self.largest, self.count, rows[:: max(1, -(-len(rows) // _SAMPLE))])


class InputWatch:
    """Watches the inputs of layers by name, from `with` on to its end."""

    def __init__(self, layers: Mapping[str, Any]) -> None:
        self._layers = layers
        self._seen: dict[str, list[_Collected]] = {}
        self._hooks: list[Any] = []

    def __enter__(self) -> "InputWatch":
        for name, layer in self._layers.items():
            *lead, features, _ = layer.weight.shape
            self._seen[name] = [_Collected(features) for _ in range(lead[0] if lead else 1)]
            self._hooks.append(layer.register_forward_pre_hook(self._hook(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def inputs(self, name: str) -> list[Inputs]:
        """What was seen of a layer, one of each expert."""
        return [seen.inputs() for seen in self._seen[name]]

    def _hook(self, name: str) -> Any:
        def watch(layer: Any, given: tuple[Any, ...]) -> None:
            rows = given[0].reshape([-1, given[0].shape[-1]]).astype("float32").numpy()
            if not isinstance(layer, ExpertMatrices):
                self._seen[name][0].add(rows)
                return
            bounds = given[1].tolist()
            for expert, seen in enumerate(self._seen[name]):
                seen.add(rows[bounds[expert] : bounds[expert + 1]])

        return watch


class KVWatch:
    """In place of the rounding of keys and values: changes nothing, and keeps the largest of each channel."""

    def __init__(self) -> None:
        self.largest: list[np.ndarray] | None = None

    def apply(self, keys: paddle.Tensor, values: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """The same keys and values [B, T, K, D]."""
        found = [
            np.abs(x.astype("float32").numpy()).reshape([-1, x.shape[2] * x.shape[3]]).max(0)
            for x in (keys, values)
        ]
        before = self.largest or found
        self.largest = [np.maximum(one, other) for one, other in zip(before, found, strict=True)]
        return keys, values
