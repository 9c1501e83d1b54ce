"""The pipeline of a run: how its model is cut, the engine that runs its steps, and what is told about it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from erniekit.assemble import Assembled
from erniekit.config.config import Config
from erniekit.estimate.machines import MACHINES
from erniekit.estimate.parallel import Estimate
from erniekit.estimate.plans import Model, Pipelining, choose_cut, choose_pipelining, make_plan, workload_of
from erniekit.estimate.shares import Spread
from erniekit.models.registry import load_family
from erniekit.ops.backend import on_cpu
from erniekit.parallel.layout import Layout
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.parallel.schedule import Schedule, simulate
from erniekit.parallel.stages import Stages


@dataclass(frozen=True)
class PipelinePlan:
    """How the steps of a run go through its stages.

    schedule: of a whole step. stages: the blocks of each. estimate: memory and time, as of `erniekit plan`.
    """

    pipelining: Pipelining
    schedule: Schedule
    stages: Stages
    estimate: Estimate

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each rank."""
        return self.schedule.places


def plan_pipeline(config: Config, numbers: Any, layout: Layout, *, attended: float) -> PipelinePlan | None:
    """The pipeline of a run; None where one process has the whole model.

    Args:
        numbers: of the model. attended: tokens of the sample that a token belongs to, on average.

    Raises:
        ConfigError: the cut or the schedule does not fit the model or the micro-batches of a step.
    """
    if layout.pipeline == 1:
        return None
    family, machine = load_family(numbers), MACHINES["cpu" if on_cpu() else "H800"]
    model = Model(numbers, family.weights.memory_shapes(numbers), family.plan)
    sequence = config.parallel.sequence_parallel and layout.tensor > 1
    stage = int(config.parallel.sharding[-1:] or 1)
    spread = Spread(**vars(layout), sharding_stage=stage, sequence_parallel=sequence)
    workload = workload_of(config, numbers, on_cpu=machine.on_cpu, attended=attended)
    pipelining = choose_pipelining(**asdict(config.pipelining))
    schedule, stages = choose_cut(model, spread, workload, machine, pipelining)
    return PipelinePlan(pipelining, schedule, stages, make_plan(model, spread, workload, machine, pipelining))


def build_engine(plan: PipelinePlan, built: Assembled, *, sequence_parallel: bool) -> PipelineEngine:
    """The engine of this process, for a model that was built with the stages of `plan`."""
    assert built.spread is not None and built.spread.cut is not None
    mesh = built.spread.mesh
    parts = mesh.context.size * (mesh.tensor.size if sequence_parallel else 1)

    def shape_of(batch: Any) -> Sequence[int]:
        rows, columns = batch.input_ids.shape
        return rows, columns // parts, built.config.hidden_size

    return PipelineEngine(
        built.model,
        load_family(built.config).plan,
        mesh.pipeline,
        cut=built.spread.cut,
        name=plan.pipelining.schedule,
        virtual_pp_degree=plan.pipelining.virtual_pp_degree,
        activation_cap=plan.pipelining.activation_cap,
        shape_of=shape_of,
    )


def in_words(plan: PipelinePlan) -> str:
    """Schedule, stages, and what is simulated of a step, for the screen before the first one."""
    blocks = "; ".join(
        "+".join(f"{start}-{end - 1}" for start, end in (plan.stages[stage] for stage in own))
        for own in plan.places
    )
    chunks = "" if plan.schedule.num_chunks == 1 else f", {plan.schedule.num_chunks} pieces each"
    held = ", ".join(f"{peak:g}" for peak in simulate(plan.schedule).peaks)
    sizes = ", ".join(f"{rank.activations / 2**20:,.1f}" for rank in plan.estimate.ranks)
    return (
        f"{plan.schedule.name} over {plan.schedule.num_ranks} ranks{chunks}, layers {blocks}; simulated: "
        f"bubble {100 * plan.estimate.bubble:.0f} %, at the peak activations of {held} micro-batches "
        f"({sizes} MiB)"
    )
