"""PiSSA (Meng et al. 2024): LoRA whose factors begin as the largest singular directions of the matrix.

    A_0 B_0 scale = U_r S_r V_r^T,   y = x (W - A_0 B_0 scale) + scale (x A) B

The frozen weight is what the beginning leaves. Files stay ordinary: they hold the factors side by side
with their beginning, [A | A_0] and [B; -B_0] of twice the rank, which is an adapter of the model as
it was.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import paddle

from erniekit.adapters.layers import LoraLinear, Piece
from erniekit.ops.lora import lora_linear, merged_weight

# Of the randomised decomposition: directions beyond the rank, and passes over the matrix.
_SPARE, _PASSES = 10, 8


class PissaLinear(LoraLinear):
    """A linear layer with an adapter that begins as a part of its weight."""

    method = "PiSSA"
    stored_ranks = 2

    _beginning: tuple[paddle.Tensor, paddle.Tensor] | None = None

    def product(self, x: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
        if self.active or self._beginning is None:
            return super().product(x, bias)
        settings: dict[str, Any] = {"pieces": self.columns, "scale": self.scale}
        return lora_linear(x, self.weight, bias, *self._beginning, **settings)

    def begin(self) -> None:
        """Take the largest directions of every piece out of the weight, into the factors."""
        root = np.sqrt(self.scale).astype(np.float32)
        factors = {}
        whole = self.weight.astype("float32").numpy()
        if self.shared is not None:
            whole = self.shared.whole("weight", whole)
        for piece in self.pieces:
            matrix = whole[:, piece.start : piece.stop]
            a, b = leading_factors(matrix, self.rank)
            factors[piece] = (a / root, b / root)
        super().take_factors(factors)
        self._part_from_beginning()

    def stored_factors(self) -> list[tuple[Piece, np.ndarray, np.ndarray]]:
        assert self._beginning is not None, "the adapter has not begun"
        first_a, first_b = (tensor.numpy() for tensor in self._beginning)
        return [
            (piece, np.concatenate([a, first_a[in_a]], 1), np.concatenate([b, _negative(first_b[in_b])]))
            for (piece, a, b), (_, in_a, in_b) in zip(super().stored_factors(), self.places(), strict=True)
        ]

    def stored_arrays(self, factor: str) -> list[tuple[int, np.ndarray]]:
        assert self._beginning is not None, "the adapter has not begun"
        first_a, first_b = (tensor.numpy() for tensor in self._beginning)
        first = {"lora_A": first_a, "lora_B": _negative(first_b)}
        found = super().stored_arrays(factor)
        return [*found, (self.rank, first[factor])] if factor in first else found

    def take_factors(self, factors: Mapping[Piece, tuple[np.ndarray, np.ndarray]]) -> None:
        super().take_factors(
            {piece: (a[:, self.rank :], -b[self.rank :]) for piece, (a, b) in factors.items()}
        )
        self._part_from_beginning()
        super().take_factors(
            {piece: (a[:, : self.rank], b[: self.rank]) for piece, (a, b) in factors.items()}
        )

    def leave(self) -> None:
        assert self._beginning is not None, "the adapter has not begun"
        self._add_to_weight(self._beginning, self.scale)

    def _part_from_beginning(self) -> None:
        """The present factors are the beginning: keep them, and leave the rest in the weight."""
        assert self._beginning is None, "the adapter has begun already"
        self._beginning = (self.lora_A.detach().clone(), self.lora_B.detach().clone())
        self._add_to_weight(self._beginning, -self.scale)

    @paddle.no_grad()
    def _add_to_weight(self, factors: tuple[paddle.Tensor, paddle.Tensor], scale: float) -> None:
        merged = merged_weight(self.weight, *factors, pieces=self.columns, scale=scale)
        paddle.assign(merged, output=self.weight)


def leading_factors(matrix: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A [in, r] and B [r, out] whose product is the best approximation of rank r, each with root of S.

    A randomised subspace iteration (Halko et al. 2011) from a fixed seed: the same in every process.
    """
    inner, outer = matrix.shape
    width = min(rank + _SPARE, inner, outer)
    probe = np.random.default_rng(0).normal(size=(outer, width)).astype(np.float32)
    basis = np.linalg.qr(matrix @ probe)[0]
    for _ in range(_PASSES):
        basis = np.linalg.qr(matrix.T @ basis)[0]
        basis = np.linalg.qr(matrix @ basis)[0]
    left, values, right = np.linalg.svd(basis.T @ matrix, full_matrices=False)
    root = np.sqrt(values[:rank])
    return (basis @ left)[:, :rank] * root, root[:, None] * right[:rank]


def _negative(raw: np.ndarray) -> np.ndarray:
    """-x of raw bits: fp32, or bf16 as uint16."""
    return raw ^ np.uint16(0x8000) if raw.dtype == np.uint16 else -raw
