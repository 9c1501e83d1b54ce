"""A product with a low-rank adapter beside it, without the merged weight ever being made.

A fused weight holds several matrices side by side, and each has a pair of its own: for the columns
of piece p,

    y_p = x W_p + b_p + scale (x A_p) B_p

The A_p lie beside each other in `lora_A` [I, P R], the B_p in `lora_B` [R, sum of the pieces' widths].
Pieces of the weight without an adapter are in none of them.

    I, O features in and out, P pieces, R rank, M rows, E experts
"""

from collections.abc import Iterator

import paddle

from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.moe import grouped_linear
from erniekit.ops.quantised import QuantisedMatrix, quantised_linear

# Columns [start, stop) of the weight.
Pieces = tuple[tuple[int, int], ...]


def lora_linear(
    x: paddle.Tensor,
    weight: paddle.Tensor | QuantisedMatrix,
    bias: paddle.Tensor | None,
    lora_A: paddle.Tensor,
    lora_B: paddle.Tensor,
    *,
    pieces: Pieces,
    scale: float,
) -> paddle.Tensor:
    """x [..., I] times weight [I, O] plus bias and adapters, in the type of x; see the module docstring."""
    return choose("lora_linear")(x, weight, bias, lora_A, lora_B, pieces=pieces, scale=scale)


def lora_linear_reference(
    x: paddle.Tensor,
    weight: paddle.Tensor | QuantisedMatrix,
    bias: paddle.Tensor | None,
    lora_A: paddle.Tensor,
    lora_B: paddle.Tensor,
    *,
    pieces: Pieces,
    scale: float,
) -> paddle.Tensor:
    """`lora_linear` by plain operators."""
    dtype = x.dtype
    x, lora_A, lora_B = to_arithmetic(x, lora_A, lora_B)
    if isinstance(weight, QuantisedMatrix):
        y = quantised_linear(x, weight)
    else:
        y = paddle.matmul(x, to_arithmetic(weight)[0])
    if bias is not None:
        y = y + to_arithmetic(bias)[0]
    y = y + low_rank(x, lora_A, lora_B, pieces=pieces, scale=scale, width=y.shape[-1])
    return to_storage(y, dtype)


def low_rank(
    x: paddle.Tensor,
    lora_A: paddle.Tensor,
    lora_B: paddle.Tensor,
    *,
    pieces: Pieces,
    scale: float,
    width: int,
) -> paddle.Tensor:
    """scale (x A_p) B_p in the columns of each piece, zeros in the others of `width`; in the type of x."""
    dtype = x.dtype
    x, lora_A, lora_B = to_arithmetic(x, lora_A, lora_B)
    inner = paddle.matmul(x, lora_A) * scale
    parts, reached = [], 0
    for ranks, columns, (start, stop) in each_piece(pieces, lora_B.shape[-2]):
        if start > reached:
            parts.append(paddle.zeros([*x.shape[:-1], start - reached], dtype=x.dtype))
        parts.append(paddle.matmul(inner[..., ranks], lora_B[..., columns]))
        reached = stop
    if width > reached:
        parts.append(paddle.zeros([*x.shape[:-1], width - reached], dtype=x.dtype))
    return to_storage(parts[0] if len(parts) == 1 else paddle.concat(parts, axis=-1), dtype)


def each_piece(pieces: Pieces, rank: int) -> Iterator[tuple[slice, slice, tuple[int, int]]]:
    """For every piece its columns of `lora_A`, its columns of `lora_B`, and its columns of the weight."""
    first = 0
    for index, (start, stop) in enumerate(pieces):
        columns = slice(first, first + stop - start)
        yield slice(index * rank, (index + 1) * rank), columns, (start, stop)
        first = columns.stop


def _columns(matrix: paddle.Tensor, columns: slice) -> paddle.Tensor:
    """Some columns; the matrix itself for all of them, so that a parameter stays one."""
    return matrix if columns.stop - columns.start == matrix.shape[-1] else matrix[..., columns]


def merged_weight(
    weight: paddle.Tensor, lora_A: paddle.Tensor, lora_B: paddle.Tensor, *, pieces: Pieces, scale: float
) -> paddle.Tensor:
    """weight + scale A B in the type of the weight, for the few small places that need a whole matrix."""
    wide, lora_A, lora_B = (t.astype("float32") for t in (weight, lora_A, lora_B))
    parts, reached = [], 0
    for ranks, columns, (start, stop) in each_piece(pieces, lora_B.shape[-2]):
        parts.append(wide[..., reached:start])
        parts.append(wide[..., start:stop] + scale * paddle.matmul(lora_A[..., ranks], lora_B[..., columns]))
        reached = stop
    parts.append(wide[..., reached:])
    parts = [part for part in parts if part.shape[-1]]
    return to_storage(parts[0] if len(parts) == 1 else paddle.concat(parts, axis=-1), weight.dtype)


def lora_grouped_linear(
    x_MI: paddle.Tensor,
    weight: paddle.Tensor | QuantisedMatrix,
    offsets: paddle.Tensor,
    lora_A: paddle.Tensor,
    lora_B: paddle.Tensor,
    *,
    pieces: Pieces,
    scale: float,
    x_dropped: paddle.Tensor | None = None,
) -> paddle.Tensor:
    """`grouped_linear` with a pair of adapters for every expert: `lora_A` [E, I, P R], `lora_B` [E, R, ...].

    Rows of all experts go through one grouped product for each factor.

    Args:
        x_dropped: what the adapters see in place of x.
    """
    y_MO = grouped_linear(x_MI, weight, offsets)
    inner = grouped_linear(x_MI if x_dropped is None else x_dropped, lora_A, offsets)
    inner = to_arithmetic(inner)[0] * scale
    parts, reached = [], 0
    for ranks, columns, (start, stop) in each_piece(pieces, lora_B.shape[-2]):
        if start > reached:
            parts.append(paddle.zeros([x_MI.shape[0], start - reached], dtype=inner.dtype))
        of_piece = to_storage(_columns(inner, ranks), y_MO.dtype)
        parts.append(to_arithmetic(grouped_linear(of_piece, _columns(lora_B, columns), offsets))[0])
        reached = stop
    if y_MO.shape[-1] > reached:
        parts.append(paddle.zeros([x_MI.shape[0], y_MO.shape[-1] - reached], dtype=inner.dtype))
    added = parts[0] if len(parts) == 1 else paddle.concat(parts, axis=-1)
    return to_storage(to_arithmetic(y_MO)[0] + added, y_MO.dtype)
