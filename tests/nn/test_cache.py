"""The cache keeps what was stored, layer by layer, and says when it is full."""

import numpy as np
import paddle
import pytest

from erniekit.nn.cache import KVCache
from erniekit.ops import backend
from erniekit.ops.attention import visibility
from erniekit.ops.rope import rotations


def step(cache: KVCache, layer: int, qkv: np.ndarray) -> np.ndarray:
    """Two query heads, one key head, four channels."""
    columns = qkv.shape[1]
    positions = paddle.arange(cache.length, cache.length + columns).unsqueeze(0)
    visible = visibility(
        paddle.zeros([1, columns], dtype="int32"), num_past=cache.length, backend=backend.current_backend()
    )
    turns = rotations(positions, 4, 100.0, num_heads=3)
    with paddle.no_grad():
        return cache.attend(layer, paddle.to_tensor(qkv), turns, visible, num_heads=2).numpy()


def test_columns_that_come_in_parts_attend_as_those_that_come_together() -> None:
    qkv = np.random.default_rng(0).normal(size=(2, 1, 6, 16)).astype("float32")
    whole = KVCache(2, 1, 6, 1, 4, "float32")
    expected = [step(whole, layer, qkv[layer]) for layer in range(2)]
    cache = KVCache(2, 1, 9, 1, 4, "float32")
    parts: list[list[np.ndarray]] = [[], []]
    for start, stop in ((0, 3), (3, 4), (4, 6)):
        for layer in range(2):
            parts[layer].append(step(cache, layer, qkv[layer][:, start:stop]))
        cache.advance(stop - start)
    assert cache.length == 6
    for layer in range(2):
        np.testing.assert_allclose(np.concatenate(parts[layer], axis=1), expected[layer], atol=1e-5)
        np.testing.assert_array_equal(cache.values[layer].numpy()[0, 0, :6], qkv[layer][0, :, 12:])
        np.testing.assert_allclose(
            cache.keys[layer].numpy()[:, :, :6], whole.keys[layer].numpy(), atol=1e-6, rtol=0
        )


def test_a_full_cache_says_so() -> None:
    cache = KVCache(1, 1, 2, 1, 4, "float32")
    with pytest.raises(AssertionError, match="cache of 2 columns asked for 3"):
        step(cache, 0, np.zeros((1, 3, 16), np.float32))
