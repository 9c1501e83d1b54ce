"""The pipeline of a run: the engine that runs its steps, and what is told about it."""

from collections.abc import Sequence
from typing import Any

from erniekit.assemble import Assembled
from erniekit.models.registry import load_family
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.parallel.schedule import simulate
from erniekit.train.planning import RunPlan


def build_engine(plan: RunPlan, built: Assembled, *, sequence_parallel: bool) -> PipelineEngine:
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


def in_words(plan: RunPlan) -> str:
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
