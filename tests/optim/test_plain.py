"""Updates by Paddle's operators: masters, and rounding at random."""

import numpy as np
import paddle

from erniekit.optim import plain
from erniekit.optim.plain import PlainUpdate
from erniekit.optim.update import random_seed


def test_a_master_sets_its_parameter():
    held = {"a": paddle.zeros([2], dtype="bfloat16"), "b": paddle.zeros([2])}
    update = PlainUpdate(held)
    assert update.master_names() == ["a"]
    update.set_master("a", np.array([1.001, -2.0], np.float32))
    np.testing.assert_array_equal(update.master("a"), np.array([1.001, -2.0], np.float32))
    assert held["a"].astype("float32").tolist() == [1.0, -2.0]


def test_rounding_at_random_is_up_or_down_and_keeps_the_mean():
    value = 1.0 + 0.25 * 2**-7  # a quarter of the way to the next bf16 number
    for sign in (1.0, -1.0):
        x = paddle.full([20000], sign * value)
        random = plain._random_bits(1, 0, [20000]) & paddle.to_tensor(0xFFFF, dtype="int64")
        rounded = plain._rounded_at_random(x, random).astype("float32").numpy()
        assert set(np.unique(np.abs(rounded))) == {1.0, 1.0 + 2**-7}
        assert abs((np.abs(rounded) != 1.0).mean() - 0.25) < 0.015
    exact = paddle.to_tensor([0.5, -3.0, 0.0, float("inf")])
    most = paddle.full([4], 0xFFFF, dtype="int64")
    np.testing.assert_array_equal(
        plain._rounded_at_random(exact, most).astype("float32").numpy(), exact.numpy()
    )


def test_random_bits_depend_on_update_and_place_only():
    whole = plain._random_bits(3, 0, [100]).numpy()
    np.testing.assert_array_equal(plain._random_bits(3, 40, [6, 10]).numpy().ravel(), whole[40:])
    assert (plain._random_bits(4, 0, [100]).numpy() != whole).all()
    assert whole.min() >= 0 and whole.max() < 2**32 and len(np.unique(whole)) == 100
    bits = (plain._random_bits(3, 0, [5000]).numpy()[:, None] >> np.arange(32)) & 1
    assert np.abs(bits.mean(0) - 0.5).max() < 0.03


def test_seeds_differ():
    seeds = {random_seed(update, element) for update in range(50) for element in (0, 1 << 32, 5 << 32)}
    assert len(seeds) == 150 and max(seeds) < 2**32
