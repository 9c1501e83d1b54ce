"""A model spread over the processes of a run: what each holds, and what their gradients mean.

Applied to a model that was built without memory for its weights (`paddle.LazyGuard`): experts first,
then matrices, then stages; memory is taken for what stays, and `placements` says which part of the
whole model's parameters that is. Reading, saving, counting and summing follow from it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from erniekit.errors import UnsupportedError
from erniekit.parallel import comm
from erniekit.parallel.expert import apply_expert_parallel
from erniekit.parallel.mesh import Mesh
from erniekit.parallel.placement import Placement, whole
from erniekit.parallel.replicate import share_updates, sum_gradients
from erniekit.parallel.tensor import apply_tensor_parallel


@dataclass(frozen=True)
class Distribution:
    """Where this process stands, and what of each parameter it holds.

    Args:
        experts: parameters that are spread by experts: their copies are elsewhere than those of others.
        partial: parameters whose gradient here is of a part of the tokens, summed over the tensor group.
        split: parameters of which the processes of the tensor group hold different parts.
    """

    mesh: Mesh
    placements: Mapping[str, Placement]
    experts: frozenset[str] = frozenset()
    partial: frozenset[str] = frozenset()
    split: frozenset[str] = frozenset()

    def counts(self, name: str) -> bool:
        """Whether this process is the one to save and count what it holds of a parameter."""
        return self.placements[name].counted

    def answers(self, name: str) -> bool:
        """Whether this process or one of its `copies` is the one to save and count it."""
        return name in self.split or self.mesh.tensor.rank == 0

    def copies(self, name: str) -> comm.Group:
        """The processes that hold the same of a parameter, for other sequences."""
        return self.mesh.expert_replicas if name in self.experts else self.mesh.replicas

    def sum_gradients(self, parameters: Mapping[str, Any], owners: Mapping[str, int] | None = None) -> None:
        """Make the gradients those of the whole step; with `owners` each in the process that updates it.

        `owners` are places in the group of `copies`.
        """
        chosen = {name: parameters[name] for name in parameters if name in self.partial}
        if chosen:
            sum_gradients(chosen, self.mesh.tensor)
        for group, names in self._by_copies(parameters):
            if group.size > 1:
                sum_gradients({name: parameters[name] for name in names}, group, owners)

    def share_updates(self, parameters: Mapping[str, Any], owners: Mapping[str, int]) -> None:
        """Take over every parameter from the process that updated it."""
        for group, names in self._by_copies(parameters):
            if group.size > 1:
                share_updates({name: parameters[name] for name in names}, group, owners)

    def _by_copies(self, names: Iterable[str]) -> list[tuple[comm.Group, list[str]]]:
        plain = [name for name in names if name not in self.experts]
        return [
            (self.mesh.replicas, plain),
            (self.mesh.expert_replicas, [n for n in names if n in self.experts]),
        ]


def distribute(model: Any, plan: Any, mesh: Mesh, *, sequence_parallel: bool = False) -> Distribution:
    """Spread a model over the processes along the tensor and expert axes of `mesh`.

    Args:
        model: of the model contract, without weights.
        plan: the family's module, see `tensor.py` and `expert.py`.

    Raises:
        ConfigError: a size of the model is not divisible.
        UnsupportedError: the axes do not go together.
    """
    layout = mesh.layout
    if layout.expert > 1 and layout.tensor > 1 and layout.moe_group != "mp":
        raise UnsupportedError(
            f"moe_group: {layout.moe_group} with tensor_parallel_degree: {layout.tensor} is not built; "
            "experts over the processes of tensor parallelism are: write moe_group: mp"
        )
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    same_tokens = layout.moe_group == "mp" and not sequence_parallel
    over_experts = apply_expert_parallel(model, plan, mesh.expert, same_tokens=same_tokens)
    over_tensor = apply_tensor_parallel(
        model, plan, mesh.tensor, sequence_parallel=sequence_parallel, split_experts=not over_experts
    )
    for parameter in model.parameters():
        if not parameter._is_initialized():
            parameter.initialize()
    split = frozenset(over_tensor) | (frozenset(over_experts) if layout.moe_group == "mp" else frozenset())
    placements: dict[str, Placement] = {}
    for name, shape in shapes.items():
        placement = over_tensor.get(name) or over_experts.get(name) or whole(shape)
        copies = mesh.expert_replicas if name in over_experts else mesh.replicas
        answers = name in split or mesh.tensor.rank == 0
        placements[name] = replace(placement, counted=answers and copies.rank == 0)
    partial = frozenset(shapes) - {*over_tensor, *over_experts} if sequence_parallel else frozenset()
    return Distribution(mesh, placements, frozenset(over_experts), partial, split)
