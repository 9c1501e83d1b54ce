"""What the benchmark of several processes calls wrong, and its tables."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def parallel(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("parallel")


def row(name, count, **changes):
    sent = {"tensor": {"measured": 2_000_000, "predicted": 2_000_000}} if count > 1 else {}
    memory = {"measured": 100 << 20, "predicted": 105 << 20}
    plain = {"name": name, "model": "dense", "processes": count, "seconds": 0.5, "loss": 2.0}
    return {**plain, "sent": sent, "memory": memory, **changes}


def test_what_is_wrong(parallel):
    rows = [row("one process", 1), row("tensor 2", 2)]
    assert parallel.wrong(rows, 0.1) == []
    other = row("tensor 2", 2, loss=2.1)
    assert "loss 2.1" in parallel.wrong([rows[0], other], 0.1)[0]
    more = row("tensor 2", 2, sent={"tensor": {"measured": 3, "predicted": 2}})
    assert "tensor sent" in parallel.wrong([rows[0], more], 0.1)[0]
    assert "memory" in parallel.wrong(rows, 0.01)[0]


def test_tables(parallel):
    heading, alone, two = parallel.plan_rows([row("one process", 1), row("tensor 2", 2)])
    assert len(heading) == len(alone) == len(two)
    assert alone[2] == "nothing" and two[2] == "tensor 2.0" and two[4] == "105 (+5.0%)"
    rank = {"seconds": 1.0, "bubble": 0.3, "simulated_bubble": 0.25, "peak": 2}
    rank |= {"activations": 3 << 20, "simulated_activations": 2.5 * 2**20}
    heading, found = parallel.schedule_rows([{"name": "1f1b", "ranks": [rank]}])
    assert found == ["1f1b", "1.00", "30.0%", "25.0%", "3.0", "2.5", "2"] and len(heading) == len(found)

    held = {
        "processes": 2,
        "stage": 1,
        "weights": 89 * 2**20,
        "gradients": 0.0,
        "states": 2**20,
        "peak": 1.5 * 2**20,
    }
    heading, found = parallel.sharding_rows([held])
    assert found == ["2", "1", "89.0", "0.0", "1.0", "1.5"] and len(heading) == len(found)


def test_every_plan_names_a_model_and_its_processes(parallel):
    for kind, count, replicas, _ in parallel.PLANS.values():
        assert kind in ("dense", "experts") and count % replicas == 0
        assert parallel.MICRO_BATCHES % replicas == 0
