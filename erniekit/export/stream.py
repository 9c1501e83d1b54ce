"""A model's blocks one after the other over all batches: in memory are one block and what passes between two.

The states that enter block i are those that left block i - 1, as it is by then: in full, or quantised.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from erniekit.checkpoint.files import TensorFolder
from erniekit.checkpoint.raw import to_tensor
from erniekit.low_precision import PADDLE_TYPES
from erniekit.models.registry import load_family
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices


class _Caught(Exception):
    """Ends a forward pass at the first block."""


class BlockStream:
    """The blocks of a model.

    Args:
        weights: the model's, as `open_weights` gives them.
        inputs: of each batch, the arrays by the names of the model's `forward`.
    """

    def __init__(
        self, config: Any, weights: Any, inputs: Sequence[Mapping[str, np.ndarray]], *, compute_dtype: str
    ) -> None:
        self.config, self.weights = config, weights
        self.family = load_family(config)
        self.dtype = PADDLE_TYPES[compute_dtype]
        self._inputs = inputs
        with paddle.LazyGuard():
            self.model = self.family.build(config, dtype=compute_dtype)
        self.model.eval()
        self._states: list[tuple[Any, ...]] = []

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return int(self.config.num_hidden_layers)

    def prefix(self, index: int) -> str:
        """What the names of a block's parameters begin with."""
        return f"{self.family.plan.BLOCKS}.{index}."

    @paddle.no_grad()
    def start(self) -> None:
        """Compute what enters the first block."""
        embedding = self.family.plan.EMBEDDING + ".weight"
        self._fill([embedding])
        first = self._blocks()[0]
        forward = first.forward

        def catch(*given: Any) -> None:
            self._states.append(given)
            raise _Caught

        first.forward = catch
        try:
            for arrays in self._inputs:
                try:
                    self.model(**{name: paddle.to_tensor(array) for name, array in arrays.items()})
                except _Caught:
                    continue
        finally:
            first.forward = forward
        dict(self.model.named_parameters())[embedding]._clear_data()

    def fill(self, index: int) -> None:
        """Give a block its weights, in full."""
        prefix = self.prefix(index)
        self._fill([name for name, _ in self.model.named_parameters() if name.startswith(prefix)])

    def take(self, index: int, tensors: TensorFolder, elsewhere: Collection[str]) -> None:
        """Give a block those of its parameters that a folder of Paddle's layout holds in full.

        Args:
            elsewhere: parameters that it does not.
        """
        prefix = self.prefix(index)
        present = dict(self.model.named_parameters())
        found: dict[str, list[tuple[Any, np.ndarray]]] = {}
        for stored in self.family.weights.stored_tensors(self.config, "paddle"):
            if stored.parameter.startswith(prefix) and stored.parameter not in elsewhere:
                found.setdefault(stored.parameter, []).append((stored, tensors.read(stored.name)))
        for name, parts in found.items():
            word = tensors.info(parts[0][0].name).dtype
            raw = parts[0][1] if parts[0][0].expert is None else np.stack([part for _, part in parts])
            present[name].set_value(to_tensor(raw, word).astype(present[name].dtype))

    def matrices(self, index: int) -> dict[str, Any]:
        """The layers of a block that have a role for quantisation, by the names of their parameters."""
        ends = tuple(f".{end}" for end in self.family.plan.ROLES)
        return {
            f"{self.prefix(index)}{name}.weight": layer
            for name, layer in self._blocks()[index].named_sublayers()
            if f".{name}".endswith(ends) and isinstance(layer, (Linear, ExpertMatrices))
        }

    def layer(self, index: int, name: str) -> Any:
        """A part of a block by its name below it."""
        return dict(self._blocks()[index].named_sublayers())[name]

    @paddle.no_grad()
    def run(self, index: int, *, keep: bool = True) -> None:
        """Send all batches through a block.

        Args:
            keep: go on from what comes out; otherwise the states stay those that enter the block.
        """
        block = self._blocks()[index]
        for batch, (stream, delta, *rest) in enumerate(self._states):
            out = block(stream, delta, *rest)
            if keep:
                self._states[batch] = (*out, *rest)

    def drop(self, index: int) -> None:
        """Let go of a block's weights."""
        self._blocks()[index] = paddle.nn.Layer()

    @paddle.no_grad()
    def finish(self) -> list[np.ndarray]:
        """The hidden states fp32 [B, T, H] of every batch after the last norm."""
        norm = self.family.plan.FINAL_NORM
        self._fill([f"{norm}.weight"])
        layer = dict(self.model.named_sublayers())[norm]
        return [layer(*state[:2])[1].astype("float32").numpy() for state in self._states]

    def _blocks(self) -> Any:
        return dict(self.model.named_sublayers())[self.family.plan.BLOCKS]

    def _fill(self, names: Sequence[str]) -> None:
        parameters = dict(self.model.named_parameters())
        for name in names:
            raw = to_tensor(self.weights.parameter(name), self.weights.dtype(name))
            parameters[name].set_value(raw.astype(parameters[name].dtype))
