"""A step of a pipeline that is looked at: what its activations take, and how long a rank computes."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import paddle

from erniekit.ops.backend import find_library
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.parallel.schedule import FORWARD, RECEIVES, SENDS, Action, Schedule, simulate


@dataclass(frozen=True)
class StepFigures:
    """Of a step on one rank.

    kept: bytes that a micro-batch keeps for its backward pass in each chunk of the rank. most: bytes that
    were kept at once. peak: activations, each of a micro-batch through a chunk, that were held at once.
    busy, seconds: time of computing, and of the whole step.
    """

    kept: tuple[int, ...]
    most: int
    peak: int
    busy: float
    seconds: float

    @property
    def bubble(self) -> float:
        """Share of the step in which the rank did not compute."""
        return 1.0 - self.busy / self.seconds

    def simulated(self, schedule: Schedule, rank: int) -> float:
        """`most` as the simulation of the schedule has it, from `kept`.

        Where backwards are split it is wrong by up to a sixth, either way: a part of an activation goes with
        the first half, and what the second half needs comes on top.
        """
        own = dict(zip(schedule.places[rank], self.kept, strict=True))
        sizes = [float(own.get(stage, 0)) for stage in range(schedule.num_stages)]
        return simulate(schedule, activations=sizes).peaks[rank]


def observe_step(engine: PipelineEngine, run: Callable[[], object]) -> StepFigures:
    """Figures of `run`, which has the engine run a step; of use after a first one, which makes gradients.

    For benchmarks and tests: memory is asked for after every action.
    """
    start = _memory()
    kept: dict[int, int] = {}
    most, busy, before = 0, 0.0, start

    def look(action: Action, begin: float, end: float) -> None:
        nonlocal most, busy, before
        now = _memory()
        if action.kind == FORWARD:
            kept.setdefault(action.chunk, now - before)
            most = max(most, now - start)
        if action.kind not in RECEIVES:
            before = now
            busy += 0.0 if action.kind in SENDS else end - begin

    engine.observe, began = look, time.perf_counter()
    try:
        run()
    finally:
        engine.observe = None
    seconds = time.perf_counter() - began
    return StepFigures(tuple(kept[chunk] for chunk in sorted(kept)), most, engine.peak, busy, seconds)


def _memory() -> int:
    """Bytes of tensors on this process's device."""
    if paddle.device.get_device() != "cpu":  # not executed in this project's CI
        return int(paddle.device.cuda.memory_allocated())
    library = find_library().library
    native = 0 if library is None else library.memory_state()[0]
    return native + int(paddle.base.core.host_memory_stat_current_value("Allocated", 0))
