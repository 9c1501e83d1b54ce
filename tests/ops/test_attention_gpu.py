"""What FlashMask is asked for. The kernel needs a GPU; its documented mask is stood in for here."""

import numpy as np
import paddle
import pytest

from erniekit.ops import attention_gpu
from erniekit.ops.attention import Visibility, visibility


def documented_mask(indices: np.ndarray, num_columns: int) -> np.ndarray:
    """Visible [B, T, S]: causal, and key j hidden from query `indices[b, 0, j, 0]` on."""
    query = np.arange(num_columns)[:, None]
    key = np.arange(num_columns)[None, :]
    return (key <= query)[None] & (query[None] < indices[:, 0, None, :, 0])


@pytest.mark.parametrize(
    "attend_from",
    [
        [[0, 0, 0, 0, 0, 0]],
        [[0, 0, 2, 2, 2, 5]],
        [[0, 1, 2, 2, 2, 2], [0, 0, 0, 3, 4, 5]],
    ],
    ids=["causal", "packed", "padded left and right"],
)
def test_mask_says_what_each_query_may_see(
    attend_from: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = np.array(attend_from, dtype="int32")
    num_rows, num_columns = starts.shape
    asked = {}

    def flashmask(q, k, v, *, startend_row_indices, dropout, causal):
        asked.update(indices=startend_row_indices.numpy(), causal=causal, dropout=dropout)
        return q

    monkeypatch.setattr(attention_gpu.F, "flashmask_attention", flashmask)
    q = paddle.zeros([num_rows, num_columns, 2, 4])
    visible = visibility(paddle.to_tensor(starts), num_past=0, backend="gpu")
    attention_gpu.attention_flashmask(q, q, q, visible, dropout=0.25)
    query = np.arange(num_columns)[None, :, None]
    key = np.arange(num_columns)[None, None, :]
    wanted = (starts[:, :, None] <= key) & (key <= query)
    assert asked["indices"].shape == (num_rows, 1, num_columns, 1)
    assert asked["indices"].dtype == np.int32
    assert (documented_mask(asked["indices"], num_columns) == wanted).all()
    assert asked["causal"] is True and asked["dropout"] == 0.25


def test_a_second_answer_does_not_see_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples in a row, the first and second of lengths 1 + 2 + 2 and 2 + 1 + 3 (prompt, answers)."""
    seen = np.zeros((1, 11, 3), "int32")
    seen[0, 5:, 0] = 5
    seen[0, 3:5, 1:] = (1, 3)
    seen[0, 8:, 1:] = (7, 8)
    asked = {}

    def flashmask(q, k, v, *, startend_row_indices, dropout, causal):
        asked.update(indices=startend_row_indices.numpy())
        return q

    monkeypatch.setattr(attention_gpu.F, "flashmask_attention", flashmask)
    q = paddle.zeros([1, 11, 2, 4])
    visible = visibility(paddle.to_tensor(seen), num_past=0, backend="gpu")
    attention_gpu.attention_flashmask(q, q, q, visible)
    wanted = visibility(paddle.to_tensor(seen), num_past=0, backend="reference").mask.numpy()[:, 0] == 0
    assert (documented_mask(asked["indices"], 11) == wanted).all()


def test_a_cache_takes_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def reference(*words, dropout):
        called.append(dropout)
        return words[0]

    monkeypatch.setattr(attention_gpu, "attention_reference", reference)
    starts = paddle.zeros([1, 1], dtype="int32")
    q = paddle.zeros([1, 1, 2, 4])
    assert attention_gpu.attention_flashmask(q, q, q, Visibility(starts, 3, None, None)) is q
    assert called == [0.0]
