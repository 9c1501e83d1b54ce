"""The starter of processes itself: results in order, the first failure told, a hang bounded, nobody left."""

import os
import time

import pytest

from erniekit.testing.distributed import WorkerError, run_distributed

HERE = "tests.testing.test_distributed"


def add(one: int, two: int) -> tuple[int, int, int]:
    return int(os.environ["PADDLE_TRAINER_ID"]), one + two, os.getpid()


def fail(kind: str) -> None:
    from erniekit.errors import PeerError

    rank = int(os.environ["PADDLE_TRAINER_ID"])
    if rank == 1 and kind == "raise":
        time.sleep(0.1)
        raise ValueError("the reason")
    if kind == "raise":
        raise PeerError("only a consequence")
    if rank:
        time.sleep(60)


def test_results_come_in_the_order_of_the_ranks() -> None:
    told = run_distributed(f"{HERE}:add", 2, 3, 4)
    assert [(rank, total) for rank, total, _ in told] == [(0, 7), (1, 7)]
    assert len({process for *_, process in told} | {os.getpid()}) == 3


def test_the_cause_is_told_and_not_its_consequence() -> None:
    with pytest.raises(WorkerError) as caught:
        run_distributed(f"{HERE}:fail", 2, "raise")
    assert "ValueError: the reason" in str(caught.value) and "consequence" not in str(caught.value)


def test_a_hang_ends_and_names_the_rank() -> None:
    with pytest.raises(WorkerError, match="^rank 1 did not end within 6 s"):
        run_distributed(f"{HERE}:fail", 2, "hang", timeout=6)
