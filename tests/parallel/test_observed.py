"""What is measured of steps of two real processes, against the simulation of their schedules."""

from functools import cache
from typing import Any

import pytest

from erniekit.parallel.schedule import build_schedule
from erniekit.testing.distributed import run_distributed
from tests.parallel.test_pipeline import SCHEDULES, batches_of, build, engine_of, seed_of, step_loss_of

COUNT = 6


def measure(names: list[str]) -> dict[str, Any]:
    from erniekit.parallel.comm import open_world
    from erniekit.parallel.observed import observe_step

    world = open_world()
    found = {}
    for name in names:
        model = build("dense")
        engine, _ = engine_of(model, world, **SCHEDULES[name])
        step_loss = step_loss_of(model, "dense")
        batches = batches_of(0, 1) * COUNT

        def step(engine: Any = engine, step_loss: Any = step_loss, batches: Any = batches) -> None:
            step_loss.begin(batches)
            engine.run(batches, step_loss, seed_of=seed_of(0))

        step()  # makes the gradients' memory
        found[name] = observe_step(engine, step)
        assert engine.observe is None
    return found


@cache
def figures() -> list[dict[str, Any]]:
    return run_distributed("tests.parallel.test_observed:measure", 2, list(SCHEDULES))


@pytest.mark.parametrize("name", SCHEDULES)
def test_memory_and_pauses_follow_the_schedule(name: str) -> None:
    schedule = build_schedule(num_ranks=2, num_micro_batches=COUNT, **SCHEDULES[name])
    for rank, of_rank in enumerate(figures()):
        found = of_rank[name]
        assert len(found.kept) == schedule.num_chunks and all(found.kept)
        share = found.most / found.simulated(schedule, rank)
        # A part goes with the first half of a backward pass, and what waits for the second comes on top.
        assert abs(share - 1.0) < (0.18 if schedule.splits_backward else 0.02), (rank, share)
        assert 0.0 < found.busy < found.seconds and 0.0 < found.bubble < 1.0


def test_activations_held_by_the_first_rank() -> None:
    first = figures()[0]
    peaks = {"1f1b": 2, "interleaved": 5, "zero_bubble": 2, "capped": 1}
    assert {name: first[name].peak for name in peaks} == peaks
    for name, peak in peaks.items():
        assert first[name].most == pytest.approx(peak * first[name].kept[0], rel=0.02), name
