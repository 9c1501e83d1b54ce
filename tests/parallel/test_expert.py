"""Experts over two processes: rows go to their experts and come back, also where an expert has none."""

from typing import Any

import numpy as np

from erniekit.testing.distributed import run_distributed

HERE = "tests.parallel.test_expert"
EXPERTS, HIDDEN = 4, 3
# Expert 2 has no token in either process, and all of the second process's go to the first one's experts.
CHOSEN = ([[0, 3], [3, 1], [1, 0]], [[0, 1], [1, 0]])


def run(kind: str) -> dict[str, Any]:
    """Each expert multiplies by its number + 2: the weighted sums, gradients, and the rows of experts."""
    import paddle

    from erniekit.ops.moe import Routing
    from erniekit.ops.tiles import Grid, rounded
    from erniekit.parallel.comm import open_world, traffic
    from erniekit.parallel.expert import ExpertDispatcher, OwnExpertsDispatcher
    from erniekit.parallel.worker import Worker
    from erniekit.quant.fp8 import PackedRows

    world = open_world()
    same = kind == "same tokens"
    chosen = np.array(CHOSEN[0 if same else world.rank])
    random = np.random.default_rng(len(chosen))
    x = paddle.to_tensor(random.normal(size=(len(chosen), HIDDEN)).astype(np.float32))
    weights = paddle.to_tensor(random.random(chosen.shape).astype(np.float32))
    x.stop_gradient = weights.stop_gradient = False
    dispatcher = OwnExpertsDispatcher(world) if same else ExpertDispatcher(world, Worker())
    seen = x.numpy()
    if kind == "as bytes":
        dispatcher.packing = PackedRows()
        seen = rounded(x, Grid("e4m3", 1, 128, power_of_two=True)).numpy()
        assert (seen != x.numpy()).any()
    called = []
    dispatcher.meanwhile = lambda: called.append(1)
    routing = Routing(paddle.zeros([len(chosen), EXPERTS]), paddle.to_tensor(chosen), weights, None)
    traffic.clear()
    rows, offsets, state = dispatcher.dispatch(x, routing, EXPERTS)
    sent = sum(size for (_, operation), size in traffic.items() if operation == "all_to_all")
    counts = np.diff(offsets.numpy())
    assert len(counts) == EXPERTS // world.size and counts.sum() == rows.shape[0]
    factors = (np.arange(len(counts)) + world.rank * len(counts) + 2).repeat(counts).astype(np.float32)
    out = dispatcher.combine(rows * paddle.to_tensor(factors).unsqueeze(-1), routing, state)
    out.sum().backward()
    scaled = (weights.numpy() * (chosen + 2)).sum(1)
    return {
        "out": float(np.abs(out.numpy() - seen * scaled[:, None]).max()),
        "x": float(np.abs(x.grad.numpy() - scaled[:, None]).max()),
        "weights": float(np.abs(weights.grad.numpy() - (chosen + 2) * seen.sum(1)[:, None]).max()),
        "counts": counts.tolist(),
        "meanwhile": len(called),
        "sent": sent,
    }


def check(kind: str, counts: list[list[int]]) -> list[int]:
    found = run_distributed(f"{HERE}:run", 2, kind)
    for each in found:
        assert max(each[name] for name in ("out", "x", "weights")) < 1e-5, each
    assert [each["counts"] for each in found] == counts
    assert {each["meanwhile"] for each in found} == {int(kind != "same tokens")}
    return [each["sent"] for each in found]


def test_tokens_of_each_process_go_to_the_experts_of_all() -> None:
    # The first process sends two rows of three fp32 numbers, the second four.
    assert check("own tokens", [[4, 4], [0, 2]]) == [2 * 12, 4 * 12]


def test_rows_travel_as_bytes_there_and_in_full_back() -> None:
    # A row of three bytes and the scale of its only tile.
    assert check("as bytes", [[4, 4], [0, 2]]) == [2 * 7, 4 * 7]


def test_tokens_that_all_hold_go_to_the_own_experts() -> None:
    check("same tokens", [[2, 2], [0, 2]])
