"""Native attention over a cache against the plain one, columns coming in parts."""

import numpy as np
import paddle
import pytest

from erniekit.ops.attention import visibility
from erniekit.ops.cached_attention import cached_attention_reference
from erniekit.ops.kernels import library as kernels
from erniekit.ops.kernels.library import Library, find_library
from erniekit.ops.native.cached_attention import cached_attention
from erniekit.ops.rope import rotations

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
# Rows, query heads, key heads, head dim.
SHAPES = [(2, 3, 1, 6), (1, 9, 3, 64), (2, 4, 4, 2), (1, 2, 1, 128), (1, 20, 1, 18)]
PARTS = (5, 1, 40, 2, 300, 1, 17)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_of_a_row_attend_to_all_before(
    library: Library, shape: tuple[int, int, int, int], dtype: str
) -> None:
    rows, heads, key_heads, dim = shape
    sizes = {"num_heads": heads, "num_kv_heads": key_heads, "head_dim": dim}
    rng = np.random.default_rng(0)
    capacity = sum(PARTS) + 3
    padding = np.array([0, 7])[:rows]
    # What was not written must not be read: it is no number.
    size = [rows, key_heads, capacity, dim]
    found, expected = ([paddle.full(size, float("nan"), dtype) for _ in range(2)] for _ in range(2))
    past = 0
    for columns in PARTS:
        own = np.arange(past, past + columns)[None]
        starts = np.where(own < padding[:, None], own, padding[:, None])
        visible = visibility(paddle.to_tensor(starts.astype(np.int32)), num_past=past, backend="cpu")
        positions = paddle.to_tensor(np.maximum(own - padding[:, None], 0))
        qkv = paddle.to_tensor(
            rng.normal(size=(rows, columns, (heads + 2 * key_heads) * dim)).astype("float32")
        ).astype(dtype)
        with paddle.no_grad():
            turns = rotations(positions, dim, 100.0)
            out = cached_attention(qkv, turns, visible, *found, **sizes).astype("float32").numpy()
            plain = cached_attention_reference(qkv, turns, visible, *expected, **sizes)
        plain = plain.astype("float32").numpy()
        past += columns
        assert np.abs(out - plain).max() / np.abs(plain).max() < BOUNDS[dtype]
        for mine, theirs in zip(found, expected, strict=True):
            mine, theirs = (x.astype("float32").numpy() for x in (mine, theirs))
            np.testing.assert_allclose(mine[:, :, :past], theirs[:, :, :past], atol=BOUNDS[dtype], rtol=1e-2)
            assert np.isnan(mine[:, :, past:]).all()


def test_threads_change_no_bit(library: Library) -> None:
    rng = np.random.default_rng(0)
    sizes = {"num_heads": 6, "num_kv_heads": 2, "head_dim": 32}
    results = []
    for threads in (1, 2, 5):
        library.set_threads(threads)
        rng = np.random.default_rng(0)
        cache = [paddle.to_tensor(rng.normal(size=(2, 2, 400, 32)).astype("float32")) for _ in range(2)]
        qkv = paddle.to_tensor(rng.normal(size=(2, 90, 320)).astype("float32"))
        visible = visibility(paddle.zeros([2, 90], dtype="int32"), num_past=310, backend="cpu")
        turns = rotations(paddle.arange(310, 400).unsqueeze(0).expand([2, 90]), 32, 100.0)
        with paddle.no_grad():
            results.append(cached_attention(qkv, turns, visible, *cache, **sizes).numpy())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_other_types_take_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Library:
        raise AssertionError("no kernel takes mixed types")

    monkeypatch.setattr(kernels, "load", refuse)
    sizes = {"num_heads": 2, "num_kv_heads": 1, "head_dim": 4}
    cache = [paddle.zeros([1, 1, 3, 4], dtype="float64") for _ in range(2)]
    qkv = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 2, 16)))
    visible = visibility(paddle.zeros([1, 2], dtype="int32"), num_past=0, backend="cpu")
    turns = rotations(paddle.arange(2).unsqueeze(0), 4, 100.0, num_heads=3)
    with paddle.no_grad():
        out = cached_attention(qkv, turns, visible, *cache, **sizes)
    # The first column sees only itself, and no position has turned it.
    np.testing.assert_allclose(out.numpy()[0, 0], np.tile(qkv.numpy()[0, 0, 12:], 2))
    np.testing.assert_array_equal(cache[1].numpy()[0, 0, :2], qkv.numpy()[0, :, 12:])
