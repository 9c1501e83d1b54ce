"""A mesh of four processes: sums along every axis."""

import pytest

from erniekit.errors import ConfigError
from erniekit.testing.distributed import run_distributed

pytestmark = pytest.mark.slow


def sum_along_axes() -> dict[str, float]:
    import paddle

    from erniekit.parallel import comm
    from erniekit.parallel.layout import choose_layout
    from erniekit.parallel.mesh import AXES, open_mesh

    world = comm.open_world(patience=60)
    mesh = open_mesh(choose_layout(4, tensor_parallel_degree=2, moe_group="mp"), world)
    assert mesh.world is world and mesh.layout.data == 2
    found = {}
    for axis in AXES:
        group = getattr(mesh, axis)
        assert group.ranks == mesh.layout.ranks_along(axis, world.rank) and group.name == axis
        found[axis] = float(comm.all_reduce(paddle.to_tensor(float(10**world.rank)), group))
    return found


def test_sums_along_axes() -> None:
    told = run_distributed("tests.parallel.test_mesh:sum_along_axes", 4)
    assert [one["tensor"] for one in told] == [11, 11, 1100, 1100]
    assert [one["expert"] for one in told] == [11, 11, 1100, 1100]
    for axis in ("data", "batch", "replicas", "expert_replicas"):
        assert [one[axis] for one in told] == [101, 1010, 101, 1010], axis
    assert [one["stage"] for one in told] == [1111] * 4
    assert [one["sharding"] for one in told] == [1, 10, 100, 1000] == [one["pipeline"] for one in told]


def test_one_process_has_groups_of_one() -> None:
    from erniekit.parallel.layout import Layout
    from erniekit.parallel.mesh import open_mesh

    mesh = open_mesh(Layout())
    assert mesh.tensor.size == mesh.expert.size == 1 and mesh.batch.rank == 0
    with pytest.raises(ConfigError, match="for 2 processes, and 1 run"):
        open_mesh(Layout(tensor=2))
