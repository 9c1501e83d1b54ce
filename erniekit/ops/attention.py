"""Causal attention over rows that may hold several samples or padding.

What a query may see is one tensor for all uses: the query at column t of row b sees the keys
attend_from[b, t] <= j <= t. Packed samples start at their own first column, left-padded rows at
their first real one, and a padded column sees itself only. Where two answers share one prompt in a
row, the tensor is [B, T, 3]: the second answer sees its prompt and itself, not the columns
attend_from[b, t, 1] <= j < attend_from[b, t, 2] of the first one in between.

The reference does not compute the masked blocks: a row is cut into its samples (`Block`s), and
only the triangle of each is computed. For rows that cannot be cut (decoding over a cache,
unusual masks) it falls back to one additive mask.

    B rows, T query columns, S key columns, N query heads, K key heads (N a multiple of K), D head dim
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import paddle
import paddle.nn.functional as F

from erniekit.ops.backend import choose, to_arithmetic, to_storage
from erniekit.ops.rope import rotate

# Queries, keys and values.
Turned = tuple[paddle.Tensor, paddle.Tensor, paddle.Tensor]
# More blocks than this a row on average: the mask is cheaper than the Python loop.
_MAX_BLOCKS_PER_ROW = 64


@dataclass(frozen=True)
class Block:
    """Columns [start, stop) of some rows: a sample in each, or columns that see only themselves."""

    row: int
    rows: int
    start: int
    stop: int
    alone: bool


@dataclass(frozen=True)
class Visibility:
    """What the attention of one forward pass needs to know, made once for all layers.

    Attributes:
        attend_from_BT: int32, see the module docstring.
        num_past: key columns before the first query column (cache).
        blocks: how the rows are cut; None when `mask` is used.
        mask: float32 [B, 1, T, S], 0 where visible, a large negative number elsewhere; or None.
        gaps_BT2: int32, columns from the first to below the second that are hidden in between; or None.
    """

    attend_from_BT: paddle.Tensor
    num_past: int
    blocks: tuple[Block, ...] | None
    mask: paddle.Tensor | None
    gaps_BT2: paddle.Tensor | None = None


def visibility(attend_from: paddle.Tensor, *, num_past: int, backend: str) -> Visibility:
    """Prepare the attention of a forward pass over T columns that follow `num_past` cached ones.

    Args:
        attend_from: int32 [B, T], or [B, T, 3] with gaps, see the module docstring.
    """
    gaps_BT2 = None
    if attend_from.ndim == 3:
        attend_from, gaps_BT2 = attend_from[:, :, 0].contiguous(), attend_from[:, :, 1:].contiguous()
    if num_past == 0 and (backend == "gpu" or (backend == "native" and gaps_BT2 is not None)):
        return Visibility(attend_from, 0, None, None, gaps_BT2)
    if num_past == 0 and gaps_BT2 is None:
        blocks = cut(attend_from.numpy())
        if blocks is not None:
            return Visibility(attend_from, 0, blocks, None)
    mask = whole_mask(attend_from, gaps_BT2, num_past=num_past)
    return Visibility(attend_from, num_past, None, mask, gaps_BT2)


def whole_mask(
    attend_from_BT: paddle.Tensor, gaps_BT2: paddle.Tensor | None, *, num_past: int
) -> paddle.Tensor:
    """The additive mask [B, 1, T, S] of what the queries see."""
    num_columns = attend_from_BT.shape[1]
    queries_T1 = paddle.arange(num_past, num_past + num_columns, dtype="int32").unsqueeze(-1)
    keys_S = paddle.arange(0, num_past + num_columns, dtype="int32")
    visible = (keys_S <= queries_T1) & (keys_S >= attend_from_BT.unsqueeze(-1))
    if gaps_BT2 is not None:
        begin_BT1, end_BT1 = gaps_BT2[:, :, :1], gaps_BT2[:, :, 1:]
        visible = visible & ((keys_S < begin_BT1) | (keys_S >= end_BT1) | (keys_S == queries_T1))
    return ((1.0 - visible.astype("float32")) * -1e30).unsqueeze(1)


def cut(attend_from_BT: np.ndarray) -> tuple[Block, ...] | None:
    """Cut every row into blocks; None when a row is no sequence of blocks, or of too many."""
    num_rows, num_columns = attend_from_BT.shape
    columns = np.arange(num_columns)
    if not attend_from_BT.any():
        return (Block(0, num_rows, 0, num_columns, alone=False),)
    blocks: list[Block] = []
    for row, starts in enumerate(attend_from_BT):
        edges = np.flatnonzero(np.diff(starts, prepend=starts[0] - 1))
        if not np.array_equal(starts[edges], edges):
            return None
        lengths = np.diff(np.append(edges, num_columns))
        single = lengths == 1
        index = 0
        while index < len(edges):
            last = index
            while single[index] and last + 1 < len(edges) and single[last + 1]:
                last += 1
            stop = int(columns[edges[last]] + lengths[last])
            blocks.append(Block(row, 1, int(edges[index]), stop, alone=bool(single[index])))
            index = last + 1
    return tuple(blocks) if len(blocks) <= _MAX_BLOCKS_PER_ROW * num_rows else None


def self_attention(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dropout: float = 0.0,
    turn: Callable[..., Turned] | None = None,
) -> paddle.Tensor:
    """Queries and keys turned by their positions, then attention over the visible columns, [B, T, N D].

    Args:
        qkv_BTX: columns q | k | v, the heads of each side by side, X = (N + 2K) D.
        turns: complex64 [B, T, N + K, D/2] of `rotations`, or [B, T, 1, D/2].
        dropout: probability that an attention weight is dropped.
        turn: takes the place of `turned_heads`, with the heads known, where that is an operator of its own.
    """
    chosen = choose("self_attention")
    if turn is not None and chosen is self_attention_reference:
        out = attention(*turn(qkv_BTX, turns), visible, dropout=dropout)
        return out.reshape([*qkv_BTX.shape[:2], num_heads * head_dim])
    return chosen(
        qkv_BTX,
        turns,
        visible,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dropout=dropout,
    )


def self_attention_reference(
    qkv_BTX: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """`self_attention` by the operators for turning and attention."""
    q_BTND, k_BTKD, v_BTKD = turned_heads(
        qkv_BTX, turns, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim
    )
    out = attention(q_BTND, k_BTKD, v_BTKD, visible, dropout=dropout)
    return out.reshape([*qkv_BTX.shape[:2], num_heads * head_dim])


def turned_heads(
    qkv_BTX: paddle.Tensor, turns: paddle.Tensor, *, num_heads: int, num_kv_heads: int, head_dim: int
) -> Turned:
    """q [B, T, N, D], k and v [B, T, K, D] of a fused projection, q and k turned by their positions."""
    turned = num_heads + num_kv_heads
    qkv = qkv_BTX.reshape([*qkv_BTX.shape[:2], turned + num_kv_heads, head_dim])
    qk_BTND, v_BTKD = qkv.split([turned, num_kv_heads], axis=2)
    q_BTND, k_BTKD = rotate(qk_BTND, turns).split([num_heads, num_kv_heads], axis=2)
    return q_BTND, k_BTKD, v_BTKD


def attention(
    q_BTND: paddle.Tensor,
    k_BSKD: paddle.Tensor,
    v_BSKD: paddle.Tensor,
    visible: Visibility,
    *,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """softmax(q k^T / sqrt(D)) v over the visible keys, [B, T, N, D]; softmax in fp32.

    `dropout` is the probability that an attention weight is dropped (and the others scaled up).
    """
    return choose("attention")(q_BTND, k_BSKD, v_BSKD, visible, dropout=dropout)


def attention_reference(
    q_BTND: paddle.Tensor,
    k_BSKD: paddle.Tensor,
    v_BSKD: paddle.Tensor,
    visible: Visibility,
    *,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """`attention` by plain operators, differentiated by Paddle."""
    dtype = q_BTND.dtype
    q_BTND, k_BSKD, v_BSKD = to_arithmetic(q_BTND, k_BSKD, v_BSKD)
    if visible.blocks is None:
        mask = visible.mask
        if mask is None:
            mask = whole_mask(visible.attend_from_BT, visible.gaps_BT2, num_past=visible.num_past)
        return to_storage(_attend(q_BTND, k_BSKD, v_BSKD, mask, dropout), dtype)
    if len(visible.blocks) == 1 and not visible.blocks[0].alone:
        mask = _triangle(q_BTND.shape[1])
        return to_storage(_attend(q_BTND, k_BSKD, v_BSKD, mask, dropout), dtype)
    rows: list[list[paddle.Tensor]] = [[] for _ in range(q_BTND.shape[0])]
    for block in visible.blocks:
        where = (slice(block.row, block.row + block.rows), slice(block.start, block.stop))
        if block.alone:
            out = _alone(v_BSKD[where], q_BTND.shape[2], dropout)
        else:
            mask = _triangle(block.stop - block.start)
            out = _attend(q_BTND[where], k_BSKD[where], v_BSKD[where], mask, dropout)
        rows[block.row].append(out)
    joined = [row[0] if len(row) == 1 else paddle.concat(row, axis=1) for row in rows]
    return to_storage(joined[0] if len(joined) == 1 else paddle.concat(joined, axis=0), dtype)


def _attend(
    q_BTND: paddle.Tensor, k_BSKD: paddle.Tensor, v_BSKD: paddle.Tensor, mask: paddle.Tensor, dropout: float
) -> paddle.Tensor:
    """Query heads of one key head are rows of one matrix product, so keys are never repeated."""
    batch, num_queries, num_heads, head_dim = q_BTND.shape
    num_keys, num_key_heads = k_BSKD.shape[1:3]
    group = num_heads // num_key_heads
    q = (q_BTND * (1.0 / math.sqrt(head_dim))).transpose([0, 2, 1, 3])
    q = q.reshape([batch, num_key_heads, group * num_queries, head_dim])
    scores = paddle.matmul(q, k_BSKD.transpose([0, 2, 1, 3]), transpose_y=True)
    scores = scores.reshape([batch, num_heads, num_queries, num_keys]) + mask
    weights = F.softmax(scores, axis=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    weights = weights.reshape([batch, num_key_heads, group * num_queries, num_keys])
    out = paddle.matmul(weights, v_BSKD.transpose([0, 2, 1, 3]))
    return out.reshape([batch, num_heads, num_queries, head_dim]).transpose([0, 2, 1, 3])


def _alone(v_BTKD: paddle.Tensor, num_heads: int, dropout: float) -> paddle.Tensor:
    """A column that sees only itself has the single attention weight 1."""
    out = paddle.repeat_interleave(v_BTKD, num_heads // v_BTKD.shape[2], axis=2)
    return F.dropout(out, dropout) if dropout else out


def _triangle(length: int) -> paddle.Tensor:
    """Causal mask [T, T]: 0 on and below the diagonal, a large negative number above."""
    return paddle.triu(paddle.full([length, length], -1e30), 1)
