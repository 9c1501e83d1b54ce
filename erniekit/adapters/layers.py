"""Layers with a low-rank adapter beside their weight, made over the layers that they replace.

The weight (and bias) of the layer that was there is taken over, not copied, and keeps its name; new
are `lora_A` and `lora_B` beside it. A fused weight has a pair for each of its pieces (see
`ops/lora.py`), so the adapter is the same whether the files keep the pieces apart or not.

Where processes share a weight, its factors go along (`along`): split by columns it takes B with it, by
rows A, by experts both. Of the other one every process has the whole, and a part of its gradient.
Pieces, and what files hold, stay those of the whole.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import paddle
from paddle import nn

from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices, Gate
from erniekit.ops.dropout import dropout
from erniekit.ops.linear import add, linear
from erniekit.ops.lora import each_piece, lora_grouped_linear, lora_linear, low_rank, merged_weight
from erniekit.ops.moe import grouped_linear


@dataclass(frozen=True)
class Piece:
    """Columns [start, stop) of a weight that have an adapter, and the module's name in files.

    expert: of a weight [E, in, out] the matrix that the name is of.
    """

    name: str
    start: int
    stop: int
    expert: int | None = None


class Shared(Protocol):
    """The processes that have the other parts of a layer (`parallel/parts.py`)."""

    def part(self, name: str, whole: np.ndarray) -> np.ndarray:
        """This process's part of a whole parameter; all of it where it is not split."""

    def whole(self, name: str, part: np.ndarray) -> np.ndarray:
        """The whole parameter, of everybody's parts; all processes call it."""

    def total(self, tensor: paddle.Tensor) -> paddle.Tensor:
        """The sum over the processes."""


class Adapted(nn.Layer):
    """What all layers with an adapter share.

    Args:
        weight: the frozen matrix [..., in, out].
        pieces: of a weight [E, in, out] those of every expert.
        rank, scale: of all pieces.
    """

    def take_over(
        self, weight: paddle.Tensor, pieces: Sequence[Piece], *, rank: int, scale: float, probability: float
    ) -> None:
        """Create the factors: A drawn as peft draws it (uniform within 1 / sqrt(in)), B zero."""
        self.pieces = tuple(pieces)
        self.rank, self.scale, self.dropout = rank, scale, probability
        self.active = True
        columns = sorted({(piece.start, piece.stop) for piece in pieces})
        # Those of this process; the ranges of the whole weight are in `pieces`.
        self.columns = self.whole_columns = tuple(columns)
        self.shared: Shared | None = None
        self.sees_apart = False
        self.seen_in_part: tuple[str, ...] = ()
        *experts, inner, _ = weight.shape
        self.lora_A = self.create_parameter(
            [*experts, inner, rank * len(columns)],
            dtype=weight.dtype,
            default_initializer=nn.initializer.Constant(0.0),
        )
        width = sum(stop - start for start, stop in columns)
        self.lora_B = self.create_parameter(
            [*experts, rank, width], dtype=weight.dtype, default_initializer=nn.initializer.Constant(0.0)
        )
        self.whole_shapes = {name: tuple(getattr(self, name).shape) for name in ("lora_A", "lora_B")}
        self.draw()

    def draw(self) -> None:
        """Draw A; the numbers are those of the whole one, whatever of it is here."""
        shape = self.whole_shapes["lora_A"]
        limit = 1.0 / math.sqrt(shape[-2])
        drawn = paddle.uniform(list(shape), dtype="float32", min=-limit, max=limit)
        if self.shared is None:
            self.lora_A.set_value(drawn.astype(self.lora_A.dtype))
        else:
            self.set_part("lora_A", drawn.numpy())

    def along(self, kind: str) -> dict[str, tuple[int, list[int] | None]]:
        """What is split with the weight: its axis, and the sizes of what is fused along it (None: one).

        Args:
            kind: column, row or experts: how the weight is split.
        """
        if kind == "column":
            return {"lora_B": (self.lora_B.ndim - 1, [stop - start for start, stop in self.columns])}
        last = self.lora_A.ndim - 2
        return {"lora_A": (last, None)} if kind == "row" else {"lora_A": (0, None), "lora_B": (0, None)}

    def share(self, kind: str, count: int, shared: Shared) -> None:
        """The weight, and what goes along with it, is one of `count` parts from now on."""
        self.shared = shared
        # By columns all processes see the same.
        self.sees_apart = self.sees_apart or kind != "column"
        if kind == "column":
            self.columns = tuple((start // count, stop // count) for start, stop in self.columns)
        if kind != "experts":
            names = [name for name, _ in self.named_parameters(include_sublayers=False)]
            split = self.along(kind)
            self.seen_in_part = tuple(n for n in names if n.startswith("lora_") and n not in split)

    def drop(self, x: paddle.Tensor) -> paddle.Tensor:
        """What the adapter sees of x."""
        return dropout(x, self.dropout, training=self.training)

    def places(self) -> list[tuple[Piece, tuple[Any, ...], tuple[Any, ...]]]:
        """For every piece its part of `lora_A` and of `lora_B` as indices."""
        where = {
            place: (ranks, columns) for ranks, columns, place in each_piece(self.whole_columns, self.rank)
        }
        found = []
        for piece in self.pieces:
            ranks, columns = where[piece.start, piece.stop]
            lead = (slice(None),) if piece.expert is None else (piece.expert, slice(None))
            found.append((piece, (*lead, ranks), (*lead, columns)))
        return found

    def kept_numbers(self) -> tuple[float, float]:
        """Numbers a row that stay for the backward pass beside those of the plain layer: narrow, and fp32.

        The products with A; with dropout they are in fp32, as is what A saw, and there is a mask in bytes.
        """
        inner, rank = self.lora_A.shape[-2:]
        return (0.0, 1.25 * inner + rank) if self.dropout else (rank, 0.0)

    def begin(self) -> None:
        """What is to be done once for an adapter that begins anew."""

    def leave(self) -> None:
        """Put the weight back as it was found, before the layer is replaced again."""

    def stored_factors(self) -> list[tuple[Piece, np.ndarray, np.ndarray]]:
        """Every piece with its A [in, r] and B [r, out] as files hold them, raw bits."""
        a, b = self.lora_A.numpy(), self.lora_B.numpy()
        return [(piece, a[in_a].copy(), b[in_b].copy()) for piece, in_a, in_b in self.places()]

    def stored_arrays(self, factor: str) -> list[tuple[int, np.ndarray]]:
        """What is here of a factor as raw bits, each with the rank in files that it begins at."""
        parameter = getattr(self, factor, None)
        return [] if parameter is None else [(0, parameter.numpy())]

    def stored_magnitudes(self) -> dict[Piece, np.ndarray]:
        """fp32 length of every column by piece; empty where lengths are not trained."""
        return {}

    def take_magnitudes(self, magnitudes: Mapping[Piece, np.ndarray]) -> None:
        """Set what `stored_magnitudes` gives."""
        assert not magnitudes, f"{type(self).__name__} has no magnitudes"

    def take_factors(self, factors: Mapping[Piece, tuple[np.ndarray, np.ndarray]]) -> None:
        """Set the factors, fp32, of every piece as `stored_factors` gives them; smaller ranks are padded."""
        a = np.zeros(self.whole_shapes["lora_A"], np.float32)
        b = np.zeros(self.whole_shapes["lora_B"], np.float32)
        for piece, in_a, in_b in self.places():
            first, second = factors[piece]
            rank = first.shape[1]
            a[in_a][:, :rank] = first
            b[in_b][:rank] = second
        self.set_part("lora_A", a)
        self.set_part("lora_B", b)

    def set_part(self, name: str, whole: np.ndarray) -> None:
        """Set a parameter to what this process has of a whole one in fp32."""
        parameter = getattr(self, name)
        own = whole if self.shared is None else self.shared.part(name, whole)
        parameter.set_value(paddle.to_tensor(own).astype(parameter.dtype))

    @paddle.no_grad()
    def fold(self) -> None:
        """Add the adapter to the weight, in fp32 and rounded once."""
        weight = self.weight
        merged = merged_weight(weight, self.lora_A, self.lora_B, pieces=self.columns, scale=self.scale)
        paddle.assign(merged, output=weight)


class LoraLinear(Adapted, Linear):
    """A linear layer with an adapter."""

    method = "LoRA"
    # Ranks in files for one in memory.
    stored_ranks = 1

    def __init__(
        self, base: Linear, pieces: Sequence[Piece], *, rank: int, scale: float, probability: float
    ) -> None:
        nn.Layer.__init__(self)  # the parameters are those of `base`
        self.weight = base.weight
        self.bias = base.bias
        self.take_over(base.weight, pieces, rank=rank, scale=scale, probability=probability)

    def product(self, x: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        """x weight + bias, and the adapter."""
        return self._adapted(x, bias) if self.active else linear(x, self.weight, bias)

    def _adapted(self, x: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        settings: dict[str, Any] = {"pieces": self.columns, "scale": self.scale}
        if self.dropout and self.training:
            seen = self.drop(x)
            width = self.weight.shape[-1]
            return add(
                linear(x, self.weight, bias),
                low_rank(seen, self.lora_A, self.lora_B, width=width, **settings),
            )
        return lora_linear(x, self.weight, bias, self.lora_A, self.lora_B, **settings)

    def whole_weight(self) -> paddle.Tensor:
        """The merged weight, for an output layer whose logits are computed in chunks."""
        if not self.active:
            return self.weight
        return merged_weight(self.weight, self.lora_A, self.lora_B, pieces=self.columns, scale=self.scale)


class LoraExperts(Adapted, ExpertMatrices):
    """The matrices of all experts, each with an adapter of its own."""

    def __init__(
        self, base: ExpertMatrices, pieces: Sequence[Piece], *, rank: int, scale: float, probability: float
    ) -> None:
        nn.Layer.__init__(self)
        self.weight = base.weight
        self.take_over(base.weight, pieces, rank=rank, scale=scale, probability=probability)

    def forward(self, x_MI: paddle.Tensor, offsets: paddle.Tensor) -> paddle.Tensor:
        if not self.active:
            return grouped_linear(x_MI, self.weight, offsets)
        seen = self.drop(x_MI) if self.dropout else None
        return lora_grouped_linear(
            *(x_MI, self.weight, offsets, self.lora_A, self.lora_B),
            pieces=self.columns,
            scale=self.scale,
            x_dropped=seen,
        )


class LoraGate(Adapted, Gate):
    """A router with an adapter on its text matrix, which is small enough to be merged every time."""

    def __init__(
        self, base: Gate, pieces: Sequence[Piece], *, rank: int, scale: float, probability: float
    ) -> None:
        nn.Layer.__init__(self)
        for name, parameter in base.named_parameters(include_sublayers=False):
            self.add_parameter(name, parameter)
        self.take_over(base.weight, pieces, rank=rank, scale=scale, probability=0.0)

    def matrix(self, modality: int) -> paddle.Tensor:
        """The router's matrix of a modality."""
        if modality or not self.active:
            return super().matrix(modality)
        return merged_weight(self.weight, self.lora_A, self.lora_B, pieces=self.columns, scale=self.scale)
