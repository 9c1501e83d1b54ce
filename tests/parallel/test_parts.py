"""Parts by their paths, and parameters that become a process's part."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from paddle import nn

from erniekit.errors import ConfigError
from erniekit.parallel.comm import Group
from erniekit.parallel.parts import find, narrow


def test_find() -> None:
    root = SimpleNamespace(a=SimpleNamespace(b=3), empty=None)
    assert find(root, "a.b") == 3
    assert find(root, "a.c") is None and find(root, "empty.b") is None and find(root, "x") is None


def test_a_narrowed_parameter_is_the_part_of_each_fused_piece() -> None:
    layer = nn.Linear(3, 12)
    layer.weight.stop_gradient = True
    whole = layer.weight.numpy()
    placement = narrow(layer, "weight", 1, Group((0, 1), 1), pieces=[8, 4])
    assert layer.weight.shape == [3, 6] and placement.shape == (3, 12)
    assert layer.weight.stop_gradient and dict(layer.named_parameters())["weight"] is layer.weight
    np.testing.assert_array_equal(placement.take(whole), whole[:, [4, 5, 6, 7, 10, 11]])
    out = paddle.matmul(paddle.ones([2, 3]), layer.weight)
    assert out.shape == [2, 6] and layer.weight.dtype == paddle.float32
    trained = nn.Linear(2, 4)
    narrow(trained, "bias", 0, Group((0, 1), 0))
    assert trained.bias.shape == [2] and not trained.bias.stop_gradient


def test_what_does_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="12 columns or rows cannot be split over 5"):
        narrow(nn.Linear(3, 12), "weight", 1, Group(tuple(range(5)), 1))
