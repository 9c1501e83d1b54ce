"""Runs that are looked at: what their processes sent in a step, of what, how long it took, and their memory.

For tests and benchmarks, which hold the plan of a run against it.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from erniekit.config.load import load_config
from erniekit.estimate.machines import MACHINES, Machine
from erniekit.estimate.parallel import Estimate
from erniekit.parallel import comm
from erniekit.parallel.expert import ExpertDispatcher
from erniekit.parallel.layout import choose_layout
from erniekit.parallel.observed import StepFigures, observe_step
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.parallel.schedule import BACKWARD, BACKWARD_INPUT, BACKWARD_WEIGHT, FORWARD, simulate
from erniekit.train.devices import known_numbers
from erniekit.train.planning import plan_run
from erniekit.train.processes import LAYOUT_KEYS
from erniekit.train.reporting import resident_memory
from erniekit.train.session import train_session
from erniekit.train.trainer import Trainer

_IGNORED = -100


@dataclass
class StepMeasured:
    """A step of one process.

    sent: bytes, by (name of the group, operation). seconds: of the step. loss: of all processes. peak:
    most memory that the process has had so far.
    positions, labelled: of its micro-batches. rows, away: that experts had of its tokens, in and out, and
    those of them that travelled.
    """

    sent: dict[tuple[str, str], int] = field(default_factory=dict)
    seconds: float = 0.0
    loss: float = 0.0
    peak: int = 0
    positions: int = 0
    labelled: int = 0
    rows: int = 0
    away: int = 0


def measure_runs(paths: Mapping[str, str]) -> dict[str, list[StepMeasured]]:
    """What each process does: the runs of several configurations, one after the other."""
    world = comm.open_world()
    found = {}
    with _replaced(comm, "open_world", lambda original: lambda **_: world):
        for name, path in paths.items():
            steps: list[StepMeasured] = []
            with looked_at(steps):
                code = train_session(load_config(path, [], verb="train"))
            assert code == 0, (name, code)
            found[name] = steps
    return found


def measure_pipeline(path: str) -> dict[str, float]:
    """What each process does: a run of three steps over the stages of a pipeline, whose last is looked at.

    Returns:
        `bubble`, `activations` (bytes, at the most) and `peak` (how many of a micro-batch those are) as they
        were; the first two also as `simulated_...`, by what parts took in the second step; and `seconds`.
    """
    world = comm.open_world()
    durations: dict[tuple[str, int], list[float]] = {}
    found: dict[str, float] = {}
    number = 0

    def run(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: PipelineEngine, batches: Sequence[Any], *rest: Any, **keys: Any) -> Any:
            nonlocal number
            number += 1
            if number == 2:
                self.observe = lambda action, begin, end: durations.setdefault(
                    (action.kind, self.places[self.group.rank][action.chunk]), []
                ).append(end - begin)
            if number < 3:
                result = original(self, batches, *rest, **keys)
                self.observe = None
                return result
            figures = observe_step(self, lambda: original(self, batches, *rest, **keys))
            found.update(_beside_simulation(figures, self, len(batches), durations))

        return call

    with (
        _replaced(comm, "open_world", lambda original: lambda **_: world),
        _replaced(PipelineEngine, "run", run),
    ):
        assert train_session(load_config(path, [], verb="train")) == 0
    return found


def _beside_simulation(
    figures: StepFigures,
    engine: PipelineEngine,
    num_micro_batches: int,
    durations: Mapping[tuple[str, int], Sequence[float]],
) -> dict[str, float]:
    schedule, rank = engine.schedule_of(num_micro_batches), engine.group.rank
    own = {key: statistics.median(times) for key, times in durations.items()}
    times = {key: each for part in comm.gather_objects(own, engine.group) for key, each in part.items()}

    def of_stages(*kinds: str) -> list[float]:
        return [sum(times.get((kind, stage), 0.0) for kind in kinds) for stage in range(schedule.num_stages)]

    simulated = simulate(
        schedule,
        forward=of_stages(FORWARD),
        backward_input=of_stages(BACKWARD, BACKWARD_INPUT),
        backward_weight=of_stages(BACKWARD_WEIGHT),
    )
    return {
        "seconds": figures.seconds,
        "bubble": figures.bubble,
        "simulated_bubble": simulated.bubbles[rank],
        "activations": figures.most,
        "simulated_activations": figures.simulated(schedule, rank),
        "peak": figures.peak,
    }


@contextmanager
def looked_at(steps: list[StepMeasured]) -> Iterator[None]:
    """Have every step of runs in this process add what it did."""

    def step(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Trainer) -> bool:
            comm.take_traffic()
            steps.append(StepMeasured())
            began = time.perf_counter()
            stopped: bool = original(self)
            steps[-1].seconds, steps[-1].sent = time.perf_counter() - began, comm.take_traffic()
            steps[-1].peak = resident_memory()[1]
            steps[-1].loss = self.step_loss.values(self.team.total)["loss"]
            return stopped

        return call

    def compute(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Trainer, batches: list[Any], number: int) -> float:
            spread = self.team.spread
            rank, size = (0, 1) if spread is None else (spread.mesh.context.rank, spread.mesh.context.size)
            for turn in self.team.turns_of_step(batches):
                own = turn.batch.labels.shape[1] // size
                labels = turn.batch.labels[:, rank * own : (rank + 1) * own]
                steps[-1].positions += labels.size
                steps[-1].labelled += int((labels != _IGNORED).sum())
            norm: float = original(self, batches, number)
            return norm

        return call

    def dispatch(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: ExpertDispatcher, x_NH: Any, routing: Any, num_experts: int) -> Any:
            holders, here = routing.chosen_Nk.numpy() // (num_experts // self.group.size), self.group.rank
            own = [int((holders == rank).sum()) for rank in range(self.group.size)]
            counts = comm.gather_objects(own, self.group)
            steps[-1].rows += 2 * sum(own)
            steps[-1].away += sum(own) + sum(other[here] for other in counts) - 2 * own[here]
            return original(self, x_NH, routing, num_experts)

        return call

    with (
        _replaced(Trainer, "_one_step", step),
        _replaced(Trainer, "_forward_backward", compute),
        _replaced(ExpertDispatcher, "dispatch", dispatch),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, wrap(original))
    try:
        yield
    finally:
        setattr(owner, name, original)


def planned(path: str, num_processes: int, step: StepMeasured, machine: Machine | None = None) -> Estimate:
    """The plan of a run on CPUs whose labels and rows of experts are those of a measured step."""
    config = load_config(path, [], verb="train").config
    layout = choose_layout(num_processes, **{key: getattr(config.parallel, key) for key in LAYOUT_KEYS})
    return plan_run(
        config,
        known_numbers(config.model.model_name_or_path),
        layout,
        None,
        machine or MACHINES["cpu"],
        labelled_share=step.labelled / step.positions,
        away=step.away / step.rows if step.rows else None,
    ).estimate
