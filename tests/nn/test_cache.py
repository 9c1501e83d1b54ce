"""The cache gives back what was stored, in order, layer by layer."""

import numpy as np
import paddle
import pytest

from erniekit.nn.cache import KVCache


def test_columns_come_back_in_order_and_layers_are_apart():
    cache = KVCache(2, 1, 5, 2, 3, "float32")
    rng = np.random.default_rng(0)
    keys, values = (rng.normal(size=(2, 1, 5, 2, 3)).astype("float32") for _ in range(2))
    for start, stop in ((0, 3), (3, 4), (4, 5)):
        for layer in range(2):
            part = slice(start, stop)
            new = [paddle.to_tensor(np.ascontiguousarray(x[layer][:, part])) for x in (keys, values)]
            k_BSKD, v_BSKD = cache.extend(layer, *new)
            assert k_BSKD.shape == [1, stop, 2, 3]
            np.testing.assert_array_equal(k_BSKD.numpy(), keys[layer][:, :stop])
            np.testing.assert_array_equal(v_BSKD.numpy(), values[layer][:, :stop])
        cache.advance(stop - start)
    assert cache.length == 5


def test_a_full_cache_says_so():
    cache = KVCache(1, 1, 2, 1, 2, "float32")
    with pytest.raises(AssertionError, match="cache of 2 columns asked for 3"):
        cache.extend(0, paddle.zeros([1, 3, 1, 2]), paddle.zeros([1, 3, 1, 2]))
