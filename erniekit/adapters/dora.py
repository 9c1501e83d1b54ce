"""DoRA (Liu et al. 2024): LoRA for the direction of each column of a matrix, and a trained length beside it.

    y = m / |V| (x V) + b,   V = W + scale A B,   |V| by column, held constant in the backward pass

|V|^2 = |W|^2 + 2 scale (W^T A) B + scale^2 B^T (A^T A) B by column, so V is never made. m begins at |W|.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import paddle
from paddle import nn

from erniekit.adapters.layers import LoraLinear, Piece
from erniekit.nn.linear import Linear
from erniekit.ops.backend import to_arithmetic, to_storage
from erniekit.ops.linear import linear
from erniekit.ops.lora import each_piece
from erniekit.ops.quantised import QuantisedMatrix


class DoraLinear(LoraLinear):
    """A linear layer with an adapter and trained lengths of its columns."""

    method = "DoRA"

    def __init__(
        self, base: Linear, pieces: Sequence[Piece], *, rank: int, scale: float, probability: float
    ) -> None:
        super().__init__(base, pieces, rank=rank, scale=scale, probability=probability)
        width = sum(stop - start for start, stop in self.columns)
        self.lora_magnitude = self.create_parameter(
            [width], dtype="float32", default_initializer=nn.initializer.Constant(1.0)
        )
        self.whole_shapes["lora_magnitude"] = (width,)
        self._squares: paddle.Tensor | None = None
        # A weight that is read later has its lengths then.
        if isinstance(self.weight, QuantisedMatrix) or self.weight._is_initialized():
            self.begin()

    def begin(self) -> None:
        """The lengths are those of the weight."""
        self.lora_magnitude.set_value(self.lengths())

    def along(self, kind: str) -> dict[str, tuple[int, list[int] | None]]:
        split = super().along(kind)
        return split | {"lora_magnitude": (0, split["lora_B"][1])} if kind == "column" else split

    def _adapted(self, x: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        dtype = x.dtype
        y = to_arithmetic(super()._adapted(x, None))[0]
        stretch = self.lora_magnitude / self.lengths()
        parts, reached, first = [], 0, 0
        for start, stop in self.columns:
            parts += [paddle.ones([start - reached]), stretch[first : first + stop - start]]
            first, reached = first + stop - start, stop
        parts.append(paddle.ones([y.shape[-1] - reached]))
        y = y * paddle.concat([part for part in parts if part.shape[0]])
        return to_storage(y if bias is None else y + to_arithmetic(bias)[0], dtype)

    def kept_numbers(self) -> tuple[float, float]:
        narrow, wide = super().kept_numbers()
        return narrow, wide + self.lora_magnitude.shape[0]  # the result before it is stretched

    @paddle.no_grad()
    def lengths(self) -> paddle.Tensor:
        """|V| of the adapted columns, fp32."""
        weight = self.weight
        quantised = isinstance(weight, QuantisedMatrix)
        seen = linear(self.lora_A.t(), weight).astype("float32") if quantised else None
        a, b = self.lora_A.astype("float32"), self.lora_B.astype("float32")
        if self._squares is None:  # of the frozen weight, once
            wide = (weight.numbers() if quantised else weight).astype("float32").square().sum(0)
            self._squares = paddle.concat([wide[start:stop] for start, stop in self.columns])
        parts = []
        for ranks, columns, (start, stop) in each_piece(self.columns, self.rank):
            a_p, b_p = a[:, ranks], b[:, columns]
            if seen is None:
                product = paddle.matmul(a_p, weight[:, start:stop].astype("float32"), transpose_x=True)
            else:
                product = seen[ranks, start:stop]
            cross = (product * b_p).sum(0)
            own = (paddle.matmul(paddle.matmul(a_p, a_p, transpose_x=True), b_p) * b_p).sum(0)
            parts.append(self._squares[columns] + 2.0 * self.scale * cross + self.scale**2 * own)
        found = paddle.concat(parts)
        if self.shared is not None and "lora_A" not in self.seen_in_part:  # sums over rows that others have
            found = self.shared.total(found)
        return paddle.sqrt(paddle.clip(found, min=1e-30))

    def stored_magnitudes(self) -> dict[Piece, np.ndarray]:
        lengths = self.lora_magnitude.numpy()
        return {piece: lengths[in_b[-1]].copy() for piece, _, in_b in self.places()}

    def take_magnitudes(self, magnitudes: Mapping[Piece, np.ndarray]) -> None:
        lengths = np.ones(self.whole_shapes["lora_magnitude"], np.float32)
        for piece, _, in_b in self.places():
            lengths[in_b[-1]] = magnitudes[piece]
        self.set_part("lora_magnitude", lengths)

    @paddle.no_grad()
    def fold(self) -> None:
        merged = super().whole_weight().astype("float32")
        stretch = self.lora_magnitude / self.lengths()
        for _, columns, (start, stop) in each_piece(self.columns, self.rank):
            merged[:, start:stop] = merged[:, start:stop] * stretch[columns]
        paddle.assign(merged.astype(self.weight.dtype), output=self.weight)
