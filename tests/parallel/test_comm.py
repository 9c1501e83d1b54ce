"""Collectives of 2 and 4 processes, on each transport: values, types, unequal and empty parts, traffic."""

from typing import Any

import numpy as np
import pytest

from erniekit.testing.distributed import run_distributed

pytestmark = pytest.mark.slow

HERE = "tests.parallel.test_comm"
TYPES = ("float32", "bfloat16", "int64", "int32", "float64")


def numbers(rank: int, shape: tuple[int, ...], dtype: str = "float32") -> Any:
    """Small whole numbers, different on every rank, whose sums are exact in every type."""
    import paddle

    values = np.random.default_rng(rank).integers(-20, 20, shape).astype(np.float32)
    return paddle.to_tensor(values).astype(dtype)


def plain(tensor: Any) -> list[Any]:
    return tensor.astype("float64").numpy().tolist()


def use_every_collective(transport: str) -> dict[str, Any]:
    """Whatever does not come out as computed from the numbers of all ranks fails here, in the process."""
    import paddle

    from erniekit.parallel import comm

    world = comm.open_world(identity={"version": "1"}, patience=60)
    group = comm.open_group(world.ranks, "all", transport=transport)
    size, rank = group.size, group.rank
    for dtype in TYPES:
        for shape in ((4 * size, 3), (), (40_000 // size * size + size,), (0, 5)):
            everyone = [numbers(other, shape, dtype) for other in range(size)]
            wide = np.stack([one.astype("float64").numpy() for one in everyone])
            for op, expected in (("sum", wide.sum(0)), ("max", wide.max(0)), ("min", wide.min(0))):
                mine = everyone[rank].clone()
                assert comm.all_reduce(mine, group, op) is mine and mine.dtype == everyone[0].dtype
                np.testing.assert_array_equal(plain(mine), expected.tolist())
            gathered = comm.all_gather(everyone[rank], group)
            np.testing.assert_array_equal(plain(gathered), wide.reshape(-1, *shape[1:]).tolist())
            if shape:
                part = comm.reduce_scatter(everyone[rank], group)
                np.testing.assert_array_equal(plain(part), np.split(wide.sum(0), size)[rank].tolist())
            for source in (0, size - 1):
                given = everyone[rank].clone()
                comm.broadcast(given, group, source)
                np.testing.assert_array_equal(plain(given), wide[source].tolist())
        rows = [numbers(other, (other * 2 % 5, 3), dtype) for other in range(size)]
        for found, expected in zip(comm.all_gather_unequal(rows[rank], group), rows, strict=True):
            assert plain(found) == plain(expected) and found.shape == expected.shape
        exchange_rows(group, dtype)
    strided = paddle.arange(12, dtype="float32").reshape([3, 4]).transpose([1, 0])
    assert plain(comm.all_reduce(strided, group)) == (np.arange(12).reshape(3, 4).T * size).tolist()
    assert strided.shape == [4, 3]
    assert comm.gather_objects({"rank": rank, "s": "x" * rank}, group) == [
        {"rank": other, "s": "x" * other} for other in range(size)
    ]
    assert comm.broadcast_object((rank, None), group, size - 1) == (size - 1, None)
    return pass_messages(group)


def exchange_rows(group: Any, dtype: str) -> None:
    """All-to-all with unequal counts, some of them zero, and with nothing at all."""
    from erniekit.parallel import comm

    size, rank = group.size, group.rank
    for scale in (1, 3000, 0):
        counts = [[scale * ((a + 2 * b) % 3) for b in range(size)] for a in range(size)]
        counts[size - 1] = [0] * size  # one that gives nothing
        given = [numbers(a, (sum(counts[a]), 2), dtype) for a in range(size)]
        mine = comm.all_to_all(given[rank], counts[rank], [counts[a][rank] for a in range(size)], group)
        expected = []
        for a in range(size):
            start = sum(counts[a][:rank])
            expected += plain(given[a])[start : start + counts[a][rank]]
        assert plain(mine) == expected and str(mine.dtype).endswith(dtype)


def pass_messages(group: Any) -> dict[str, Any]:
    """Everybody sends to everybody before receiving: must not hang, whatever the sizes."""
    import paddle

    from erniekit.parallel import comm

    comm.take_traffic()
    others = [other for other in range(group.size) if other != group.rank]
    for other in others:
        comm.send(paddle.full([300_000], group.rank, "float32"), group, other)
        comm.send(paddle.full([2, 0], 1, "bfloat16"), group, other)
        comm.send(paddle.full([3], group.rank + 0.5, "bfloat16"), group, other)
    for other in reversed(others):
        assert plain(comm.receive([300_000], "float32", group, other).unique()) == [other]
        assert comm.receive([2, 0], "bfloat16", group, other).shape == [2, 0]
        assert plain(comm.receive([3], "bfloat16", group, other)) == [other + 0.5] * 3
    comm.flush(group)
    comm.barrier(group)
    comm.all_reduce(paddle.ones([8 * group.size]), group)
    comm.all_gather(paddle.ones([6], dtype="bfloat16"), group)
    comm.reduce_scatter(paddle.ones([group.size, 2]), group)
    comm.all_to_all(paddle.ones([group.size, 2]), [1] * group.size, [1] * group.size, group)
    return {operation: size for (_, operation), size in comm.take_traffic().items()}


@pytest.mark.parametrize("transport", ["shared_memory", "gloo"])
@pytest.mark.parametrize("nproc", [2, 4])
def test_every_collective(nproc: int, transport: str) -> None:
    told = run_distributed(f"{HERE}:use_every_collective", nproc, transport)
    n = nproc
    assert (
        told
        == [
            {
                "send": (n - 1) * (1_200_000 + 6),
                "all_reduce": 2 * (n - 1) * 8 * 4,
                "all_gather": (n - 1) * 6 * 2,
                "reduce_scatter": (n - 1) * 2 * 4,
                "all_to_all": (n - 1) * 2 * 4,
            }
        ]
        * nproc
    )


def use_a_mesh() -> list[float]:
    """Two axes of groups over 4 processes, used in turn; and sums that round, alike on all members."""
    import paddle

    from erniekit.parallel import comm

    world = comm.open_world(patience=60)
    row, column = divmod(world.rank, 2)
    across = comm.open_group([2 * row, 2 * row + 1], "row")
    down = comm.open_group([column + 2, column], "column")  # in an order of its own
    assert (across.rank, down.rank, down.ranks) == (column, 1 - row, (column + 2, column))
    assert comm.open_group([0, 1], "half").rank == (world.rank if world.rank < 2 else -1)
    one = comm.open_group([world.rank], "alone")
    alone = paddle.to_tensor([1.0])
    assert one.size == 1 and comm.all_reduce(alone, one) is alone and comm.gather_objects(3, one) == [3]
    ranks = paddle.to_tensor([float(world.rank)])
    found = [float(comm.all_reduce(ranks.clone(), group)) for group in (across, down, across)]
    assert plain(comm.all_gather(ranks, down)) == [column + 2, column]
    rounding = paddle.to_tensor(np.random.default_rng(world.rank).normal(size=50_000).astype(np.float32))
    bits = comm.gather_objects(comm.all_reduce(rounding, world).numpy().tobytes(), world)
    assert len(set(bits)) == 1
    halves = [numbers(other, (20_000,)) * 0.01 for other in range(4)]
    total = comm.all_reduce(halves[world.rank].astype("bfloat16"), world).astype("float32").numpy()
    exact = sum(half.astype("bfloat16").astype("float32").numpy() for half in halves)
    assert np.array_equal(total, paddle.to_tensor(exact).astype("bfloat16").astype("float32").numpy())
    broken = paddle.to_tensor([float("nan"), float("inf"), 1.0]).astype("bfloat16")
    told = comm.all_reduce(broken, world).astype("float32").numpy()
    assert np.isnan(told[0]) and np.isinf(told[1]) and told[2] == 4
    return found


def test_axes_of_a_mesh() -> None:
    told = run_distributed(f"{HERE}:use_a_mesh", 4)
    assert told == [[1, 2, 1], [1, 4, 1], [5, 2, 5], [5, 4, 5]]


def make_mistakes() -> list[str]:
    """What each rank is told of calls that do not fit; a group is of no use after one, so each has one."""
    import paddle

    from erniekit.errors import RunError
    from erniekit.parallel import comm

    world = comm.open_world(patience=60)
    other = 1 - world.rank
    x = paddle.ones([4])

    def differ(group: Any) -> None:
        (comm.all_gather if group.rank else comm.all_reduce)(x, group)

    def misfit(group: Any) -> None:
        comm.send(x, group, other)
        comm.receive([2], "float32", group, other)

    mistakes = (
        differ,
        lambda group: comm.all_reduce(paddle.ones([4 + group.rank]), group),
        lambda group: comm.all_to_all(x, [2, 2], [2, 2] if group.rank else [2, 1], group),
        misfit,
    )
    told = []
    for mistake in mistakes:
        group = comm.open_group(world.ranks, "mistake")
        try:
            mistake(group)
            told.append("")
        except RunError as error:
            told.append(str(error))
    return told


def test_calls_that_do_not_fit_are_told() -> None:
    told = run_distributed(f"{HERE}:make_mistakes", 2)
    assert told[0][0].startswith("rank 1 is in all_gather (call 1) where rank 0 is in all_reduce (call 1)")
    assert told[0][1].startswith("rank 1 gives 20 bytes and rank 0 16")
    assert told[0][2] == "rank 1 sends 8 bytes in an all-to-all, and rank 0 expects 1 rows of 4 bytes"
    assert told[0][3].startswith("rank 1 sent 16 bytes where rank 0 expects 8")
    assert told[1][0].startswith("rank 0 is in all_reduce") and told[1][2] == ""


def lose_a_rank() -> list[str]:
    """Rank 1 comes late, and later ends."""
    import time

    import paddle

    from erniekit.errors import PeerError
    from erniekit.parallel import comm

    world = comm.open_world(patience=1.5)
    late = comm.open_group(world.ranks, "late")
    told = []
    if world.rank:
        time.sleep(3.5)
        return told
    for group in (late, world):
        try:
            comm.all_reduce(paddle.ones([2]), group)
        except PeerError as error:
            told.append(str(error))
        time.sleep(4 if group is late else 0)
    return told


def test_a_rank_that_is_late_or_gone_is_named() -> None:
    assert run_distributed(f"{HERE}:lose_a_rank", 2)[0] == [
        "rank 0 has waited for rank 1 for 1.5 s without an answer",
        "rank 1 has ended while rank 0 waited for it",
    ]
