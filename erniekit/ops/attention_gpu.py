"""Attention by Paddle's FlashMask kernels, see `attention.py` for what is computed.

B rows, T query columns, S key columns, N query heads, K key heads, D head dim
"""

import numpy as np
import paddle
import paddle.nn.functional as F

from erniekit.ops.attention import Visibility, attention_reference


def attention_flashmask(
    q_BTND: paddle.Tensor,
    k_BSKD: paddle.Tensor,
    v_BSKD: paddle.Tensor,
    visible: Visibility,
    *,
    dropout: float = 0.0,
) -> paddle.Tensor:
    """The same through Paddle's FlashMask (GPU only; not executed in this project's CI).

    FlashMask wants, for each KEY column, the query column from which on it is hidden: the end of
    its sample, or where a second answer begins that does not see it. With a cache the reference is used.
    """
    if visible.num_past:
        return attention_reference(q_BTND, k_BSKD, v_BSKD, visible, dropout=dropout)
    starts_BT = visible.attend_from_BT
    num_columns = starts_BT.shape[1]
    queries = paddle.arange(num_columns, dtype="int32").unsqueeze(0)
    # A key column j is hidden from the first query whose start lies behind it: starts do not decrease.
    ends = paddle.searchsorted(starts_BT, paddle.expand_as(queries, starts_BT).contiguous(), right=True)
    if visible.gaps_BT2 is not None:
        ends = paddle.minimum(ends, _first_blind(visible.gaps_BT2).astype(ends.dtype))
    indices = ends.astype("int32").unsqueeze(1).unsqueeze(-1)
    return F.flashmask_attention(
        q_BTND, k_BSKD, v_BSKD, startend_row_indices=indices, dropout=dropout, causal=True
    )


def _first_blind(gaps_BT2: paddle.Tensor) -> paddle.Tensor:
    """For each key column the first query whose gap hides it, else the number of columns; int32 [B, T]."""
    gaps = gaps_BT2.numpy()
    num_rows, num_columns = gaps.shape[:2]
    first = np.full((num_rows, num_columns), num_columns, np.int32)
    for row in range(num_rows):
        edges = np.flatnonzero(np.any(np.diff(gaps[row], axis=0, prepend=0) != 0, axis=1))
        for query in reversed(edges):
            begin, end = gaps[row, query]
            first[row, begin:end] = query
    return paddle.to_tensor(first)
