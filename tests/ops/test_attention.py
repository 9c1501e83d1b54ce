"""Attention against a loop over single queries in float64."""

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.ops.attention import Block, attention_reference, cut, visibility


def one_by_one(q, k, v, attend_from, past):
    """Softmax attention of each query over the keys it may see."""
    batch, queries, heads, dim = q.shape
    group = heads // k.shape[2]
    out = np.zeros_like(q)
    for b in range(batch):
        for t in range(queries):
            low, high = attend_from[b, t], past + t + 1
            for n in range(heads):
                scores = k[b, low:high, n // group] @ q[b, t, n] / np.sqrt(dim)
                weights = np.exp(scores - scores.max())
                out[b, t, n] = (weights / weights.sum()) @ v[b, low:high, n // group]
    return out


def starts_of(lengths):
    return np.concatenate([np.full(n, sum(lengths[:i])) for i, n in enumerate(lengths)]).astype(np.int32)


def draw(rng, *shape):
    return rng.normal(size=shape)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 1)]),
    seed=st.integers(0, 10**6),
)
def test_packed_rows(rows, heads, seed):
    rng = np.random.default_rng(seed)
    width = max(map(sum, rows))
    starts = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    for number, lengths in enumerate(rows):
        starts[number, : sum(lengths)] = starts_of(lengths)
    q, k, v = (draw(rng, len(rows), width, n, 4) for n in (heads[0], heads[1], heads[1]))
    visible = visibility(paddle.to_tensor(starts), num_past=0, backend="reference")
    assert visible.blocks is not None
    tensors = [paddle.to_tensor(x.astype("float32"), stop_gradient=False) for x in (q, k, v)]
    out = attention_reference(*tensors, visible)
    np.testing.assert_allclose(out.numpy(), one_by_one(q, k, v, starts, 0), rtol=1e-4, atol=1e-5)
    # The same through one mask: values and gradients.
    weight = paddle.to_tensor(draw(rng, *q.shape).astype("float32"))
    (out * weight).sum().backward()
    # Columns that see only themselves do not depend on q and k at all: no gradient is a zero one.
    by_blocks = [np.zeros(x.shape) if x.grad is None else x.grad.numpy().copy() for x in tensors]
    for x in tensors:
        x.clear_gradient()
    columns = np.arange(width)
    seen = (columns[None, None] <= columns[None, :, None]) & (columns[None, None] >= starts[:, :, None])
    mask = paddle.to_tensor(np.where(seen, 0.0, -1e30).astype("float32")).unsqueeze(1)
    masked = attention_reference(*tensors, type(visible)(visible.attend_from_BT, 0, None, mask))
    np.testing.assert_allclose(out.numpy(), masked.numpy(), rtol=1e-4, atol=1e-5)
    (masked * weight).sum().backward()
    for x, expected in zip(tensors, by_blocks, strict=True):
        np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("queries", "past"), [(1, 5), (3, 4), (4, 0)])
def test_over_a_cache_and_with_left_padding(queries, past):
    rng = np.random.default_rng(1)
    q, k, v = (
        draw(rng, 2, queries, 4, 8),
        draw(rng, 2, past + queries, 2, 8),
        draw(rng, 2, past + queries, 2, 8),
    )
    starts = np.array([[0] * queries, [2] * queries], dtype=np.int32)
    starts = np.minimum(starts, past + np.arange(queries, dtype=np.int32))
    visible = visibility(paddle.to_tensor(starts), num_past=past, backend="reference")
    tensors = [paddle.to_tensor(x.astype("float32")) for x in (q, k, v)]
    out = attention_reference(*tensors, visible)
    np.testing.assert_allclose(out.numpy(), one_by_one(q, k, v, starts, past), rtol=1e-4, atol=1e-5)


def test_how_rows_are_cut():
    assert cut(np.zeros((3, 5), np.int32)) == (Block(0, 3, 0, 5, False),)
    packed = np.array([[0, 0, 0, 3, 3, 5, 6]], np.int32)
    assert cut(packed) == (Block(0, 1, 0, 3, False), Block(0, 1, 3, 5, False), Block(0, 1, 5, 7, True))
    assert cut(np.array([[0, 0, 1, 1]], np.int32)) is None  # a window that slides is no sequence of blocks


def shared_prompt(prompt, first, second, before=0):
    """attend_from [T, 3] of a sample whose answers share a prompt, behind `before` columns."""
    length = before + prompt + first + second
    rows = np.zeros((length, 3), np.int32)
    rows[before:, 0] = before
    begin = before + prompt
    rows[begin + first :, 1:] = (begin, begin + first)
    return rows


def test_second_answer_sees_its_prompt_and_itself():
    """As if each answer stood behind the prompt alone."""
    before, prompt, first, second = 3, 4, 5, 2
    seen = shared_prompt(prompt, first, second, before)
    rng = np.random.default_rng(0)
    q, k, v = (draw(rng, 1, len(seen), n, 4).astype("float32") for n in (4, 2, 2))
    visible = visibility(paddle.to_tensor(seen[None]), num_past=0, backend="reference")
    out = attention_reference(*map(paddle.to_tensor, (q, k, v)), visible).numpy()
    one, two = before + prompt, before + prompt + first
    for columns in (range(before), range(before, two), [*range(before, one), *range(two, two + second)]):
        alone = [x[:, list(columns)] for x in (q, k, v)]
        expected = one_by_one(*alone, np.zeros((1, len(alone[0][0])), np.int32), 0)
        np.testing.assert_allclose(out[:, list(columns)], expected, rtol=1e-4, atol=1e-5)


def test_a_gap_never_hides_a_column_from_itself():
    seen = np.array([[[0, 0, 5], [0, 0, 5]]], np.int32)
    visible = visibility(paddle.to_tensor(seen), num_past=0, backend="reference")
    assert (visible.mask.numpy()[0, 0] == 0).tolist() == [[True, False], [False, True]]


def test_native_kernels_get_no_mask():
    seen = paddle.to_tensor(shared_prompt(2, 3, 3)[None])
    visible = visibility(seen, num_past=0, backend="native")
    assert visible.mask is None and visible.gaps_BT2.shape == [1, 8, 2]
    # With dropout the plain operators run; they make the mask themselves.
    q = paddle.to_tensor(draw(np.random.default_rng(1), 1, 8, 2, 4).astype("float32"))
    masked = visibility(seen, num_past=0, backend="cpu")
    same = attention_reference(q, q, q, masked).numpy()
    np.testing.assert_array_equal(attention_reference(q, q, q, visible).numpy(), same)
