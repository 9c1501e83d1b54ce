"""Parts by their paths, and parameters that become a process's part."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import paddle
import pytest
from paddle import nn

from erniekit.errors import ConfigError
from erniekit.parallel.comm import Group
from erniekit.parallel.parts import SharedLayer, find, narrow, narrow_along
from erniekit.parallel.placement import split, whole
from erniekit.testing.distributed import run_distributed

HERE = "tests.parallel.test_parts"


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


class WithFactor(nn.Layer):
    """A weight, and one factor that is split with its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = self.create_parameter([4, 6])
        self.factor = self.create_parameter([2, 6])
        self.shared: tuple | None = None

    def along(self, kind: str) -> dict[str, tuple[int, list[int] | None]]:
        return {"factor": (1, [4, 2])} if kind == "column" else {}

    def share(self, kind: str, count: int, shared: SharedLayer) -> None:
        self.shared = (kind, count, shared)


def test_what_goes_along_is_split_and_told() -> None:
    layer, group = WithFactor(), Group((0, 1), 1)
    factor = layer.factor.numpy()
    weight = {"weight": narrow(layer, "weight", 1, group, [4, 2])}
    found = narrow_along(layer, "column", group, weight)
    assert found.keys() == {"weight", "factor"}
    np.testing.assert_array_equal(layer.factor.numpy(), factor[:, [2, 3, 5]])
    assert layer.shared is not None
    kind, count, shared = layer.shared
    assert (kind, count) == ("column", 2)
    np.testing.assert_array_equal(shared.part("factor", factor), factor[:, [2, 3, 5]])
    assert shared.part("elsewhere", factor) is factor
    assert narrow_along(nn.Linear(2, 2), "column", group, weight) == weight


def of_both() -> Any:
    from erniekit.parallel.comm import open_world

    world, full = open_world(), np.arange(24, dtype=np.float32).reshape([4, 6])
    placement = split_in_two([4, 6], world.rank)
    shared = SharedLayer(world, {"weight": placement})
    again = shared.whole("weight", placement.take(full))
    return np.array_equal(again, full), shared.total(paddle.full([2], world.rank + 1.0)).tolist()


def split_in_two(shape: list[int], rank: int) -> Any:
    return split(whole(shape), 1, rank, 2, pieces=[4, 2])


def test_processes_put_a_parameter_together() -> None:
    assert run_distributed(f"{HERE}:of_both", 2, timeout=240) == 2 * [(True, [3.0, 3.0])]
