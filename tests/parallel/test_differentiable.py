"""Values and gradients of collectives against one process that holds the numbers of all."""

from typing import Any

import numpy as np
import pytest

from erniekit.errors import PeerError
from erniekit.testing.distributed import run_distributed

HERE = "tests.parallel.test_differentiable"
TOLERANCE = {"float32": 1e-6, "bfloat16": 2e-2}


def drawn(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Numbers that the type holds exactly."""
    import paddle

    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return paddle.to_tensor(values).astype(dtype).astype("float32").numpy()


def compare(
    call: Any, given: np.ndarray, upstream: np.ndarray, expected: Any, slope: Any, dtype: str
) -> None:
    """One collective: its value, and the gradient of sum(value * upstream)."""
    import paddle

    x = paddle.to_tensor(given).astype(dtype)
    x.stop_gradient = False
    out = call(x * 1)  # not a leaf
    assert str(out.dtype).endswith(dtype) and list(out.shape) == list(expected.shape)
    np.testing.assert_allclose(out.astype("float32").numpy(), expected, rtol=TOLERANCE[dtype], atol=1e-5)
    (out.astype("float32") * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(x.grad.astype("float32").numpy(), slope, rtol=TOLERANCE[dtype], atol=1e-2)


def use_every_function(world: Any, dtype: str) -> None:
    from erniekit.parallel import differentiable as d

    n, rank = world.size, world.rank
    for axis, shape in ((0, (2 * n, 3)), (1, (3, 2 * n, 2)), (-1, (5, 4 * n))):
        place = axis % len(shape)
        x = [drawn(10 + other, shape, dtype) for other in range(n)]
        same = [drawn(0, shape, dtype)] * n
        up = [drawn(20 + other, shape, dtype) for other in range(n)]
        wide = [
            drawn(30 + o, tuple(s * n if i == place else s for i, s in enumerate(shape)), dtype)
            for o in range(n)
        ]
        joined = np.concatenate(x, place)

        def part(array: np.ndarray, place: int = place) -> np.ndarray:
            return np.split(array, n, place)[rank]

        compare(lambda t: d.copy_to(t, world), same[rank], up[rank], same[rank], sum(up), dtype)
        compare(lambda t: d.reduce_from(t, world), x[rank], up[0], sum(x), up[0], dtype)
        # Every rank sees the same loss of what was gathered; each took its own part of what was whole.
        compare(
            lambda t, axis=axis: d.gather_from(t, world, axis), x[rank], wide[0], joined, part(wide[0]), dtype
        )
        ups = [np.split(one, n, place)[0] for one in up]
        compare(
            lambda t, axis=axis: d.scatter_to(t, world, axis),
            *(same[rank], ups[rank], part(same[0]), np.concatenate(ups, place), dtype),
        )
        compare(
            lambda t, axis=axis: d.all_gather_from(t, world, axis),
            *(x[rank], wide[rank], joined, part(sum(wide)), dtype),
        )
        compare(
            lambda t, axis=axis: d.reduce_scatter_to(t, world, axis),
            *(x[rank], ups[rank], part(sum(x)), np.concatenate(ups, place), dtype),
        )
    exchange(world, dtype)


def exchange(world: Any, dtype: str) -> None:
    from erniekit.parallel.differentiable import all_to_all_rows

    n, rank = world.size, world.rank
    for scale in (1, 0):
        counts = [[scale * ((a + 2 * b) % 3) for b in range(n)] for a in range(n)]
        counts[0] = [0] * n
        received = [[counts[a][b] for a in range(n)] for b in range(n)]
        x = [drawn(40 + a, (sum(counts[a]), 2), dtype) for a in range(n)]
        up = [drawn(50 + b, (sum(received[b]), 2), dtype) for b in range(n)]

        def rows(of: list[np.ndarray], table: list[list[int]]) -> np.ndarray:
            """What `rank` gets from all when row counts `table` are sent."""
            starts = [sum(table[a][:rank]) for a in range(n)]
            parts = zip(of, starts, table, strict=True)
            return np.concatenate([one[start : start + line[rank]] for one, start, line in parts])

        compare(
            lambda t, counts=counts, received=received: all_to_all_rows(
                t, counts[rank], received[rank], world
            ),
            *(x[rank], up[rank], rows(x, counts), rows(up, received), dtype),
        )


@pytest.mark.parametrize("nproc", [2, 4])
def test_values_and_gradients(nproc: int) -> None:
    run_distributed(f"{HERE}:use_both_types", nproc)


def use_both_types() -> None:
    from erniekit.parallel import comm

    world = comm.open_world(patience=60)
    for dtype in TOLERANCE:
        use_every_function(world, dtype)


def test_a_group_of_one_is_the_identity() -> None:
    import paddle

    from erniekit.parallel import differentiable as d
    from erniekit.parallel.comm import Group

    x, one = paddle.ones([2, 2]), Group()
    for function in (
        "copy_to",
        "reduce_from",
        "gather_from",
        "scatter_to",
        "all_gather_from",
        "reduce_scatter_to",
    ):
        assert getattr(d, function)(x, one) is x
    assert d.all_to_all_rows(x, [2], [2], one) is x


def test_a_peer_that_is_lost_in_a_backward_pass_is_named() -> None:
    import paddle
    from paddle.autograd import PyLayer

    from erniekit.parallel.differentiable import peers_named

    class Lost(PyLayer):
        @staticmethod
        def forward(context, x):  # type: ignore[no-untyped-def]
            return x * 1

        @staticmethod
        def backward(context, gradient):  # type: ignore[no-untyped-def]
            raise PeerError("rank 1 has ended while rank 0 waited for it")

    x = paddle.ones([2])
    x.stop_gradient = False
    with pytest.raises(PeerError, match="^rank 1 has ended while rank 0 waited for it$"), peers_named():
        Lost.apply(x).sum().backward()
    with pytest.raises(OSError, match="no room"), peers_named():
        raise OSError("no room")
