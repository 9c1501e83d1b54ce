"""Attention for a CPU: exact, without the hidden half of the score matrix, gradients by hand.

Every block of columns that see each other (see `attention.py`) goes through in tiles of query
columns; a tile's scores reach up to its own last column. With weights P = softmax(Q K^T), output
O = P V and incoming gradient G:
    dV = P^T G,   dS = P * (G V^T - rowsum(G * O)),   dQ = dS K,   dK = dS^T Q.

Measured on Paddle 3.3.1, 4 rows of 512 columns, 9 heads of 64 over 3 key heads, forward and
backward: reference 83 ms; this one 43 ms with weights kept, 54 ms with weights computed again.

* Query heads of one key head are rows of one matrix, so keys are never repeated.
* A strided copy ([T, N, D] to [N, T, D]) costs Paddle 7 ns an element; `split` and `concat` do it
  in 0.5.
* Broadcasts are slow too: masks are whole, and the subtraction of rowsum(G * O) is one more
  channel of the matrix product, [G | -rowsum] [V | 1]^T.

    B rows, T columns, N query heads, K key heads, M query columns of a tile (all heads of a key
    head: N/K of them, R = M N/K rows), S key columns that it reaches, D head dim
"""

import math
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from erniekit.ops.attention import Block, Visibility, attention_reference
from erniekit.ops.backend import to_arithmetic, to_storage

TILE = 128
# Weights of longer blocks are computed again in the backward pass: they grow with the square.
KEEP_WEIGHTS_UP_TO = 1024


def attention_cpu(
    q_BTND: paddle.Tensor,
    k_BSKD: paddle.Tensor,
    v_BSKD: paddle.Tensor,
    visible: Visibility,
    *,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """As `attention_reference`, which also serves what has no blocks (decoding) and dropout."""
    if visible.blocks is None or dropout:
        return attention_reference(q_BTND, k_BSKD, v_BSKD, visible, dropout=dropout)
    # Inside a PyLayer gradients are always off, so what is wanted is asked here.
    train = paddle.is_grad_enabled()
    out = _Attention.apply(*to_arithmetic(q_BTND, k_BSKD, v_BSKD), visible.blocks, train)
    return to_storage(out, q_BTND.dtype)


@dataclass(frozen=True)
class _Piece:
    """Columns [start, stop) of one row that belong together."""

    row: int
    start: int
    stop: int
    alone: bool

    def tiles(self) -> list[tuple[int, int]]:
        """(start, stop) of each tile, counted from the start of the piece."""
        length = self.stop - self.start
        return [(start, min(start + TILE, length)) for start in range(0, length, TILE)]

    def keeps_weights(self) -> bool:
        return self.stop - self.start <= KEEP_WEIGHTS_UP_TO


class _Attention(PyLayer):
    @staticmethod
    def forward(
        ctx: Any,
        q_BTND: paddle.Tensor,
        k_BTKD: paddle.Tensor,
        v_BTKD: paddle.Tensor,
        blocks: tuple[Block, ...],
        train: bool,
    ) -> paddle.Tensor:
        masks: dict[tuple[int, ...], paddle.Tensor] = {}
        outputs: list[paddle.Tensor] = []
        weights: dict[tuple[int, int, int], paddle.Tensor] = {}
        pieces = _pieces(blocks)
        for piece in pieces:
            q_TND, k_TKD, v_TKD = (x[piece.row, piece.start : piece.stop] for x in (q_BTND, k_BTKD, v_BTKD))
            if piece.alone:
                outputs.append(_repeat_heads(v_TKD, q_TND.shape[1]))
                continue
            k_KTD, v_KTD = _heads_first(k_TKD), _heads_first(v_TKD)
            for start, stop in piece.tiles():
                q_KRD = _queries(q_TND[start:stop], k_TKD.shape[1])
                weights_KRS = _weights(q_KRD, k_KTD[:, :stop], stop - start, masks)
                outputs.append(_columns_first(paddle.matmul(weights_KRS, v_KTD[:, :stop]), stop - start))
                if train and piece.keeps_weights():
                    weights[piece.row, piece.start, start] = weights_KRS
        out_BTND = paddle.concat(outputs, axis=0).reshape(q_BTND.shape)
        if train:
            ctx.save_for_backward(q_BTND, k_BTKD, v_BTKD, out_BTND)
            ctx.pieces, ctx.weights, ctx.masks = pieces, weights, masks
            ctx.wanted = [not x.stop_gradient for x in (q_BTND, k_BTKD, v_BTKD)]
        return out_BTND

    @staticmethod
    def backward(ctx: Any, grad_BTND: paddle.Tensor) -> tuple[paddle.Tensor | None, ...]:
        q_BTND, k_BTKD, v_BTKD, out_BTND = ctx.saved_tensor()
        head_dim = q_BTND.shape[-1]
        minus = paddle.full([head_dim, 1], -1.0)
        rowsum = paddle.matmul((grad_BTND * out_BTND).reshape([-1, head_dim]), minus)
        extended_BTNE = paddle.concat([grad_BTND, rowsum.reshape([*grad_BTND.shape[:-1], 1])], axis=-1)
        parts: list[list[paddle.Tensor]] = [[], [], []]
        for piece in ctx.pieces:
            columns = slice(piece.start, piece.stop)
            q_TND, k_TKD, v_TKD = (x[piece.row, columns] for x in (q_BTND, k_BTKD, v_BTKD))
            if piece.alone:
                parts[0].append(paddle.zeros([q_TND.shape[0], q_TND.shape[1] * head_dim]))
                parts[1].append(paddle.zeros([k_TKD.shape[0], k_TKD.shape[1] * head_dim]))
                parts[2].append(_sum_heads(grad_BTND[piece.row, columns], k_TKD.shape[1]))
                continue
            gradients = _backward_piece(ctx, piece, q_TND, k_TKD, v_TKD, extended_BTNE[piece.row, columns])
            for part, gradient in zip(parts, gradients, strict=True):
                part.extend(gradient)
        scale = 1.0 / math.sqrt(head_dim)
        parts[0] = [part.scale_(scale) for part in parts[0]]
        shaped = (
            paddle.concat(part, axis=0).reshape(x.shape)
            for part, x in zip(parts, (q_BTND, k_BTKD, v_BTKD), strict=True)
        )
        # Paddle wants None where nothing is asked for.
        return tuple(x if wanted else None for x, wanted in zip(shaped, ctx.wanted, strict=True))


def _backward_piece(
    ctx: Any,
    piece: _Piece,
    q_TND: paddle.Tensor,
    k_TKD: paddle.Tensor,
    v_TKD: paddle.Tensor,
    grad_TNE: paddle.Tensor,
) -> tuple[list[paddle.Tensor], list[paddle.Tensor], list[paddle.Tensor]]:
    """Gradients of the queries (tile by tile; to be scaled), keys and values of one piece, columns first."""
    length, num_key_heads, head_dim = k_TKD.shape
    k_KTD = _heads_first(k_TKD)
    v_KTE = paddle.concat([_heads_first(v_TKD), paddle.ones([num_key_heads, length, 1])], axis=-1)
    grad_q: list[paddle.Tensor] = []
    grad_k = paddle.zeros([num_key_heads, length, head_dim])
    grad_v = paddle.zeros([num_key_heads, length, head_dim + 1])
    for start, stop in piece.tiles():
        q_KRD = _queries(q_TND[start:stop], num_key_heads)
        g_NME = _heads_first(grad_TNE[start:stop])
        g_KRE = g_NME.reshape([num_key_heads, -1, head_dim + 1])
        k_KSD = k_KTD[:, :stop]
        weights_KRS = ctx.weights.pop((piece.row, piece.start, start), None)
        if weights_KRS is None:
            weights_KRS = _weights(q_KRD, k_KSD, stop - start, ctx.masks)
        grad_v = grad_v.add_(_pad(paddle.matmul(weights_KRS, g_KRE, transpose_x=True), length))
        scores = paddle.matmul(g_KRE, v_KTE[:, :stop], transpose_y=True).multiply_(weights_KRS)
        grad_q.append(_columns_first(paddle.matmul(scores, k_KSD), stop - start))
        grad_k = grad_k.add_(_pad(paddle.matmul(scores, q_KRD, transpose_x=True), length))
    grad_v = grad_v.split([head_dim, 1], axis=-1)[0]
    return grad_q, [_columns_first(grad_k, length)], [_columns_first(grad_v, length)]


def _pieces(blocks: tuple[Block, ...]) -> list[_Piece]:
    return [
        _Piece(row, block.start, block.stop, block.alone)
        for block in blocks
        for row in range(block.row, block.row + block.rows)
    ]


def _weights(
    q_KRD: paddle.Tensor, k_KSD: paddle.Tensor, num_queries: int, masks: dict[tuple[int, ...], paddle.Tensor]
) -> paddle.Tensor:
    """softmax(q k^T) [K, R, S] where the M queries of a tile are the last M of its S columns."""
    num_key_heads, num_rows, _ = q_KRD.shape
    num_keys = k_KSD.shape[1]
    shape = (num_key_heads * num_rows // num_queries, num_queries, num_keys)
    if shape not in masks:
        masks[shape] = paddle.triu(paddle.full(shape, -1e30), num_keys - num_queries + 1)
    scores = paddle.matmul(q_KRD, k_KSD, transpose_y=True).reshape(shape).add_(masks[shape])
    return F.softmax_(scores, axis=-1).reshape([num_key_heads, num_rows, num_keys])


def _queries(q_MND: paddle.Tensor, num_key_heads: int) -> paddle.Tensor:
    """[M, N, D] to scaled [K, R, D]: the query heads of a key head below each other."""
    head_dim = q_MND.shape[-1]
    scaled = _heads_first(q_MND).scale(1.0 / math.sqrt(head_dim))
    return scaled.reshape([num_key_heads, -1, head_dim])


def _heads_first(x_TND: paddle.Tensor) -> paddle.Tensor:
    """[T, N, D] to [N, T, D]."""
    length, num_heads, head_dim = x_TND.shape
    heads = x_TND.split(num_heads, axis=1) if num_heads > 1 else [x_TND]
    return paddle.concat([head.reshape([1, length, head_dim]) for head in heads], axis=0)


def _columns_first(x_KRD: paddle.Tensor, length: int) -> paddle.Tensor:
    """[K, R, D] to [T, N D]."""
    x_NTD = x_KRD.reshape([-1, length, x_KRD.shape[-1]])
    heads = x_NTD.split(x_NTD.shape[0], axis=0) if x_NTD.shape[0] > 1 else [x_NTD]
    return paddle.concat(heads, axis=-1)[0]


def _pad(x_KSD: paddle.Tensor, length: int) -> paddle.Tensor:
    """Zeros for the columns behind S up to `length`."""
    num_heads, num_columns, width = x_KSD.shape
    if num_columns == length:
        return x_KSD
    return paddle.concat([x_KSD, paddle.zeros([num_heads, length - num_columns, width])], axis=1)


def _repeat_heads(v_TKD: paddle.Tensor, num_heads: int) -> paddle.Tensor:
    """What columns see that see only themselves, [T, N D]."""
    repeated = paddle.repeat_interleave(v_TKD, num_heads // v_TKD.shape[1], axis=1)
    return repeated.reshape([v_TKD.shape[0], -1])


def _sum_heads(grad_TND: paddle.Tensor, num_key_heads: int) -> paddle.Tensor:
    """The gradient of `_repeat_heads`, [T, K D]."""
    length, _, head_dim = grad_TND.shape
    return grad_TND.reshape([length, num_key_heads, -1, head_dim]).sum(2).reshape([length, -1])
