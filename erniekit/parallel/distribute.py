"""A model spread over the processes of a run: what each holds, and what their gradients mean.

Applied to a model that was built without memory for its weights (`paddle.LazyGuard`): experts first,
then matrices, then stages; memory is taken for what stays, and `placements` says which part of the
whole model's parameters that is. Reading, saving, counting and summing follow from it.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from erniekit.errors import UnsupportedError
from erniekit.parallel import comm
from erniekit.parallel.context import apply_context_parallel
from erniekit.parallel.expert import apply_expert_parallel
from erniekit.parallel.mesh import Mesh
from erniekit.parallel.placement import Placement, whole
from erniekit.parallel.replicate import Lane, Reduction
from erniekit.parallel.seeds import apply_own_draws, of_place
from erniekit.parallel.stage_model import Cut, cut_model
from erniekit.parallel.stages import Stages
from erniekit.parallel.tensor import apply_tensor_parallel


@dataclass(frozen=True)
class Distribution:
    """Where this process stands, and what of each parameter it holds.

    Args:
        experts: parameters that are spread by experts: their copies are elsewhere than those of others.
        partial: parameters whose gradient here is of a part of the tokens, summed over the tensor group.
        split: parameters of which the processes of the tensor group hold different parts.
        names: of all parameters of the whole model, in its order.
        cut: where the model was cut into stages of a pipeline.
        ranges: what was kept of parameters that are not here as a whole, until somebody shares them.
        sequence_parallel: the processes of the tensor group have different columns of the stream.
    """

    mesh: Mesh
    placements: Mapping[str, Placement]
    experts: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    split: frozenset[str] = frozenset()
    names: tuple[str, ...] = ()
    cut: Cut | None = None
    ranges: dict[str, Any] = field(default_factory=dict, compare=False)
    sequence_parallel: bool = False

    def counts(self, name: str) -> bool:
        """Whether this process is the one to save and count what it holds of a parameter."""
        return self.placements[name].counted

    def answers(self, name: str) -> bool:
        """Whether this process or one of its `copies` is the one to save and count it."""
        if self.cut is not None and name in self.cut.copies:
            return False
        return name in self.split or self.mesh.tensor.rank == 0

    def seed_here(self, seed: int) -> int:
        """What `seed` is in each of the processes that have different columns of the same rows."""
        place, mesh = self.mesh.context.rank, self.mesh
        if self.sequence_parallel:
            place = place * mesh.tensor.size + mesh.tensor.rank
        return of_place(seed, place)

    def of_all_stages(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values of named parameters of this process and of those with the other stages of the model."""
        found: dict[str, Any] = {}
        for part in comm.gather_objects(dict(values), self.mesh.pipeline):
            found |= part
        return found

    def copies(self, name: str) -> comm.Group:
        """The processes that hold the same of a parameter, for other sequences."""
        return self.mesh.expert_replicas if name in self.experts else self.mesh.replicas

    def lane(self, name: str, *, shared: bool) -> Lane:
        """The way of a parameter's gradient; `shared` parts it in ranges over the axis of sharding."""
        mesh, expert = self.mesh, name in self.experts
        parts = mesh.tensor_sums if name in self.partial else comm.Group()
        if not shared or mesh.layout.sharding == 1:
            return Lane(comm.Group(), self.copies(name), parts)
        if expert:
            return Lane(mesh.expert_shards, mesh.expert_shard_copies, parts)
        return Lane(mesh.sharding, mesh.shard_copies, parts)

    def sum_gradients(self, parameters: Mapping[str, Any]) -> None:
        """Make the gradients those of the whole step, after the last backward pass."""
        reduction = Reduction(parameters, lambda name: self.lane(name, shared=False))
        reduction.add(reversed(list(parameters)))
        reduction.finish()


def distribute(
    model: Any,
    plan: Any,
    mesh: Mesh,
    *,
    sequence_parallel: bool = False,
    stages: Stages = (),
    places: Sequence[Sequence[int]] = (),
    waiting: Collection[str] = (),
) -> Distribution:
    """Spread a model over the processes along the tensor, expert, context and pipeline axes of `mesh`.

    Args:
        model: of the model contract, without weights.
        plan: the family's module, see `tensor.py`, `expert.py` and `stage_model.py`.
        stages: the blocks of every stage of the pipeline, where there is one.
        places: the stages of each of its ranks.
        waiting: parameters that get no memory yet, because something else takes their place.

    Raises:
        ConfigError: a size of the model is not divisible.
        UnsupportedError: the axes do not go together.
    """
    layout = mesh.layout
    if layout.expert > 1 and layout.tensor > 1 and layout.moe_group == "world" and not sequence_parallel:
        raise UnsupportedError(
            f"moe_group: world with tensor_parallel_degree: {layout.tensor} would compute every token "
            f"{layout.tensor} times; write sequence_parallel: true, or moe_group: mp or dp"
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    same_tokens = layout.moe_group == "mp" and not sequence_parallel
    over_experts = apply_expert_parallel(model, plan, mesh.expert, same_tokens=same_tokens)
    # Experts over processes that share matrices are whole there; over others, their channels are split too.
    are_whole = bool(over_experts) and layout.moe_group in ("mp", "world")
    over_tensor = apply_tensor_parallel(
        *(model, plan, mesh.tensor, over_experts),
        sequence_parallel=sequence_parallel,
        split_experts=not are_whole,
    )
    if mesh.tensor.size > 1 and not sequence_parallel:
        apply_own_draws(model, plan, mesh.tensor.rank)
    apply_context_parallel(model, plan, mesh.context)
    cut = cut_model(model, plan, stages, places[mesh.pipeline.rank]) if stages else None
    for name, parameter in model.named_parameters():
        if name not in waiting and not parameter._is_initialized():
            parameter.initialize()
    here = {name for name, _ in model.named_parameters()}
    split = frozenset(over_tensor) | (frozenset(over_experts) if are_whole else frozenset())
    placements: dict[str, Placement] = {}
    for name, shape in shapes.items():
        if name not in here:
            continue
        placement = over_tensor.get(name) or over_experts.get(name) or whole(shape)
        copies = mesh.expert_replicas if name in over_experts else mesh.replicas
        answers = name in split or mesh.tensor.rank == 0
        if cut is not None and name in cut.copies:
            answers = False
        placements[name] = replace(placement, counted=answers and copies.rank == 0)
    partial = {
        f"{path}.{name}"
        for path, layer in model.named_sublayers()
        for name in getattr(layer, "seen_in_part", ())
    }
    if sequence_parallel:
        partial |= set(shapes) - {*over_tensor, *over_experts}
    return Distribution(
        *(mesh, placements, frozenset(over_experts), frozenset(partial), split, tuple(shapes), cut),
        sequence_parallel=sequence_parallel,
    )
