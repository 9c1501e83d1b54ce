"""Sums over the inputs of layers, and the largest keys and values."""

import numpy as np
import paddle

from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices
from erniekit.quant.statistics import InputWatch, KVWatch
from tests.quant.test_rtn import drawn


def test_inputs_of_a_linear_layer():
    layer = Linear(6, 3, bias=False, dtype="float32")
    batches = [drawn(2, 5, 6), drawn(1, 4, 6, seed=1)]
    with InputWatch({"x": layer}) as watch:
        for batch in batches:
            layer(paddle.to_tensor(batch))
    layer(paddle.to_tensor(batches[0]))  # not watched any more
    (found,) = watch.inputs("x")
    rows = np.concatenate([batch.reshape(-1, 6) for batch in batches])
    np.testing.assert_allclose(found.moment, rows.T @ rows, rtol=1e-5)
    np.testing.assert_array_equal(found.largest, np.abs(rows).max(0))
    np.testing.assert_array_equal(found.sample, rows)
    assert found.count == 14


def test_inputs_of_each_expert():
    layer = ExpertMatrices(3, 6, 2, dtype="float32")
    rows = drawn(9, 6)
    with InputWatch({"x": layer}) as watch:
        layer(paddle.to_tensor(rows), paddle.to_tensor(np.array([0, 4, 4, 9])))
    found = watch.inputs("x")
    assert [each.count for each in found] == [4, 0, 5]
    np.testing.assert_allclose(found[2].moment, rows[4:].T @ rows[4:], rtol=1e-5)
    assert not found[1].moment.any() and found[1].sample.shape == (0, 6)


def test_a_sample_is_of_bounded_size():
    layer = Linear(2, 3, bias=False, dtype="float32")
    with InputWatch({"x": layer}) as watch:
        for _ in range(9):
            layer(paddle.to_tensor(drawn(5000, 2)))
    assert 128 <= len(watch.inputs("x")[0].sample) <= 512


def test_keys_and_values_pass_and_are_seen():
    watch = KVWatch()
    keys, values = paddle.to_tensor(drawn(2, 5, 3, 4)), paddle.to_tensor(drawn(2, 5, 3, 4, seed=1))
    assert watch.apply(keys, values) == (keys, values)
    watch.apply(2 * keys[:, :1], values[:, :1])
    expected = np.maximum(np.abs(keys.numpy()), 0).reshape(-1, 12).max(0)
    twice = 2 * np.abs(keys[:, :1].numpy()).reshape(-1, 12).max(0)
    np.testing.assert_allclose(watch.largest[0], np.maximum(expected, twice))
    np.testing.assert_allclose(watch.largest[1], np.abs(values.numpy()).reshape(-1, 12).max(0))
