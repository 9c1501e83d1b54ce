"""Attention by Paddle's FlashMask kernels, see `attention.py` for what is computed.

B rows, T query columns, S key columns, N query heads, K key heads, D head dim
"""

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
    its sample. With a cache the reference is used.
    """
    if visible.num_past:
        return attention_reference(q_BTND, k_BSKD, v_BSKD, visible, dropout=dropout)
    starts_BT = visible.attend_from_BT
    num_columns = starts_BT.shape[1]
    queries = paddle.arange(num_columns, dtype="int32").unsqueeze(0)
    # A key column j is hidden from the first query whose start lies behind it: starts do not decrease.
    ends = paddle.searchsorted(starts_BT, paddle.expand_as(queries, starts_BT).contiguous(), right=True)
    indices = ends.astype("int32").unsqueeze(1).unsqueeze(-1)
    return F.flashmask_attention(
        q_BTND, k_BSKD, v_BSKD, startend_row_indices=indices, dropout=dropout, causal=True
    )
