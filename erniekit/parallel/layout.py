"""Which rank does what: the axes of the processes of a run, as numbers.

A rank has one coordinate on each axis. Neighbours in rank are neighbours on the axis that talks most, so
that it lies within a machine: from the slowest to the fastest axis

    pipeline, data, sharding, context, tensor.

Experts are spread over ranks of one pipeline stage: those of the tensor axis (`moe_group: mp`), of data and
sharding (`dp`), or over all of them, tensor first (`world`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from erniekit.errors import ConfigError

AXES = ("pipeline", "data", "sharding", "context", "tensor")
# Axes that are used together, under a name of their own.
JOINED = {
    "world": AXES,
    "batch": ("data", "sharding"),  # ranks that read other sequences
    "replicas": ("data", "sharding", "context"),  # ranks that hold equal copies of what is no expert
    "tensor_sums": ("tensor",),  # the same ranks once more, for gradients that travel beside a backward pass
    "shard_copies": ("data", "context"),  # of those, the ranks with the same range where `sharding` shares
    "stage": ("data", "sharding", "context", "tensor"),
    "model": ("pipeline", "tensor"),  # ranks that hold the parts of one copy of the model, experts aside
}
# What upstream calls the ranks that experts are spread over -> what it is called here.
MOE_GROUPS = {
    **dict.fromkeys(("dummy",), "dummy"),
    **dict.fromkeys(("mp", "tp", "model"), "mp"),
    **dict.fromkeys(("dp", "data"), "dp"),
    **dict.fromkeys(("world", "none", "all"), "world"),
}
_EXPERT_AXES = {"mp": ("tensor",), "dp": ("data", "sharding"), "world": JOINED["stage"], "dummy": ()}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Processes along each axis; `expert` of them, of the ranks of `moe_group`, share the experts."""

    data: int = 1
    sharding: int = 1
    pipeline: int = 1
    tensor: int = 1
    context: int = 1
    expert: int = 1
    moe_group: str = "dummy"

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return prod(self.sizes().values())

    def sizes(self) -> dict[str, int]:
        """Processes along each axis, slowest first."""
        return {axis: getattr(self, axis) for axis in AXES}

    def coordinates(self, rank: int) -> dict[str, int]:
        """Place of a rank on each axis."""
        assert 0 <= rank < self.world_size, f"rank {rank} of {self.world_size}"
        found = {}
        for axis, size in reversed(self.sizes().items()):
            rank, found[axis] = divmod(rank, size)
        return {axis: found[axis] for axis in AXES}

    def rank_of(self, **coordinates: int) -> int:
        """The rank at a place; an axis that is left out is at 0."""
        rank = 0
        for axis, size in self.sizes().items():
            assert 0 <= coordinates.get(axis, 0) < size, f"{axis} {coordinates[axis]} of {size}"
            rank = rank * size + coordinates.get(axis, 0)
        return rank

    def ranks_along(self, axis: str, rank: int) -> tuple[int, ...]:
        """The ranks that differ from `rank` on an axis alone, itself included, in the axis' order.

        Args:
            axis: one of AXES or JOINED, `expert` (ranks that share the experts of this one's copy of
                them), `expert_replicas` (ranks that hold the same experts), `expert_shards` (of those, the
                ranks that share states) or `expert_shard_copies` (the ranks with the same range of them).
        """
        if axis in ("expert", "expert_replicas"):
            return self._experts(axis, rank)
        if axis in ("expert_shards", "expert_shard_copies"):
            return self._shards_of_experts(axis, rank)
        return self._along(JOINED.get(axis, (axis,)), rank)

    def groups(self, axis: str) -> list[tuple[int, ...]]:
        """All groups along an axis; every rank is in one."""
        found = [self.ranks_along(axis, rank) for rank in range(self.world_size)]
        return sorted(set(found))

    def _along(self, axes: Sequence[str], rank: int) -> tuple[int, ...]:
        place, stride, strides = self.coordinates(rank), 1, {}
        for axis, size in reversed(self.sizes().items()):
            strides[axis] = stride
            stride *= size
        start = rank - sum(place[axis] * strides[axis] for axis in axes)
        steps = [range(0, getattr(self, axis) * strides[axis], strides[axis]) for axis in axes]
        return tuple(start + sum(one) for one in product(*steps))

    def _experts(self, axis: str, rank: int) -> tuple[int, ...]:
        own = self._along(_EXPERT_AXES[self.moe_group], rank)
        place = own.index(rank)
        if axis == "expert":
            start = place - place % self.expert
            return own[start : start + self.expert]
        # Every part of a stage that could hold all experts, and of each the places like this one's; where
        # the matrices of an expert are split over the tensor axis too, the parts are those with its part.
        others = [one for one in JOINED["stage"] if one not in _EXPERT_AXES[self.moe_group]]
        if self.moe_group in ("dp", "dummy"):
            others.remove("tensor")
        first = [
            holders[place % self.expert :: self.expert]
            for holders in (
                self._along(_EXPERT_AXES[self.moe_group], one) for one in self._along(others, rank)
            )
        ]
        return tuple(sorted(rank for holders in first for rank in holders))

    def _shards_of_experts(self, axis: str, rank: int) -> tuple[int, ...]:
        """Ranks with the same experts: those beside this one, or those at its place elsewhere."""

        def beside(one: int) -> tuple[int, int]:
            place = self.coordinates(one)
            return place["data"], place["context"]

        holders = self._experts("expert_replicas", rank)
        own = [one for one in holders if beside(one) == beside(rank)]
        if axis == "expert_shards":
            return tuple(own)
        parts = [
            [one for one in holders if beside(one) == part] for part in sorted(set(map(beside, holders)))
        ]
        return tuple(part[own.index(rank)] for part in parts)


def choose_layout(
    world_size: int,
    *,
    tensor_parallel_degree: int = 1,
    pipeline_parallel_degree: int = 1,
    sharding_parallel_degree: int = -1,
    context_parallel_degree: int = 1,
    expert_parallel_degree: int = 1,
    moe_group: str = "dummy",
    sharding: str = "",
) -> Layout:
    """The layout of `world_size` processes by upstream's keys; what they leave open goes to data parallelism.

    Degrees of 0 and -1 mean 1, but for sharding's, where -1 means all processes that are left when
    `sharding` names a stage. `expert_parallel_degree` counts where `moe_group` is dummy, dp or world;
    without a group (dummy) it takes that of world.

    Raises:
        ConfigError: the degrees do not fit each other or the number of processes; names the keys.
    """
    sizes = {
        "tensor_parallel_degree": max(1, tensor_parallel_degree),
        "pipeline_parallel_degree": max(1, pipeline_parallel_degree),
        "context_parallel_degree": max(1, context_parallel_degree),
    }
    model = prod(sizes.values())
    left, rest = divmod(world_size, model)
    if rest or not left:
        raise ConfigError(
            f"{_words(sizes)} take {model} processes together, and the run has {world_size}: that has to be "
            "a multiple (nproc_per_node times the number of nodes)"
        )
    shards = sharding_parallel_degree
    if shards < 1:
        shards = left if sharding and shards == -1 else 1
    if shards > 1 and not sharding:
        raise ConfigError(
            f"sharding_parallel_degree: {shards} shares nothing without a stage; write sharding: stage1 "
            "(optimizer), stage2 (and gradients) or stage3 (and parameters)"
        )
    if left % shards:
        raise ConfigError(
            f"sharding_parallel_degree: {shards} does not divide the {left} processes that {_words(sizes)} "
            f"leave of {world_size}"
        )
    plain = Layout(
        data=left // shards,
        sharding=shards,
        pipeline=sizes["pipeline_parallel_degree"],
        tensor=sizes["tensor_parallel_degree"],
        context=sizes["context_parallel_degree"],
    )
    return _with_experts(plain, moe_group, max(1, expert_parallel_degree))


def _with_experts(plain: Layout, moe_group: str, degree: int) -> Layout:
    if moe_group.lower() not in MOE_GROUPS:
        raise ConfigError(f"moe_group: {moe_group} is none of {', '.join(MOE_GROUPS)}")
    group = MOE_GROUPS[moe_group.lower()]
    if group == "dummy" and degree == 1:
        return plain
    group = "world" if group == "dummy" else group
    holders = prod(getattr(plain, axis) for axis in _EXPERT_AXES[group])
    if group == "mp" and degree not in (1, holders):
        raise ConfigError(
            f"moe_group: {moe_group} spreads experts over tensor_parallel_degree: {holders} processes, and "
            f"expert_parallel_degree is {degree}; leave the latter out"
        )
    experts = holders if degree == 1 else degree
    inner = plain.context * plain.tensor if group == "world" else 1
    if holders % experts or (experts % inner and inner % experts):
        raise ConfigError(
            f"expert_parallel_degree: {experts} does not fit moe_group: {moe_group}, which has {holders} "
            f"processes for experts{f', {inner} of them with the same sequences' if inner > 1 else ''}; "
            "write a divisor"
        )
    if experts == 1:
        return plain
    return replace(plain, expert=experts, moe_group=group)


def misfits(layout: Layout, numbers: Mapping[str, int]) -> list[str]:
    """Why a model cannot be laid out so, each naming the key and the number of the model; empty when it can.

    Args:
        numbers: of the model under the names of its config.json; what is missing is not looked at:
            num_attention_heads, num_key_value_heads, intermediate_size, moe_intermediate_size, vocab_size,
            moe_num_experts, num_hidden_layers; and global_batch_size of the run.
    """
    split_experts = layout.moe_group in ("dummy", "dp")
    rules: list[tuple[str, int, str, bool]] = [
        ("tensor_parallel_degree", layout.tensor, "num_attention_heads", True),
        ("tensor_parallel_degree", layout.tensor, "num_key_value_heads", True),
        ("tensor_parallel_degree", layout.tensor, "intermediate_size", True),
        ("tensor_parallel_degree", layout.tensor, "vocab_size", True),
        ("tensor_parallel_degree", layout.tensor, "moe_intermediate_size", split_experts),
        ("expert_parallel_degree", layout.expert, "moe_num_experts", True),
        ("data and sharding_parallel_degree", layout.data * layout.sharding, "global_batch_size", True),
    ]
    found = [
        f"{key}: {degree} does not divide {name}: {numbers[name]}"
        for key, degree, name, applies in rules
        if applies and numbers.get(name) and numbers[name] % degree
    ]
    found += _heads_apart(layout, numbers) if not found else []
    layers = numbers.get("num_hidden_layers")
    if layers and layout.pipeline > layers:
        found.append(
            f"pipeline_parallel_degree: {layout.pipeline} is more than num_hidden_layers: {layers}; every "
            "pipeline rank needs one"
        )
    if layout.expert > 1 and "moe_num_experts" in numbers and not numbers["moe_num_experts"]:
        found.append(
            f"moe_group: {layout.moe_group} spreads experts over {layout.expert} processes, and this model "
            "has none; leave moe_group and expert_parallel_degree out"
        )
    return found


def _heads_apart(layout: Layout, numbers: Mapping[str, int]) -> list[str]:
    """Why the heads of a tensor rank cannot be shared by the processes that share the columns of a row."""
    size = layout.context
    heads, key_heads = (
        numbers.get(name, 0) // layout.tensor for name in ("num_attention_heads", "num_key_value_heads")
    )
    if heads % size == 0 and (key_heads % size == 0 or size % key_heads == 0):
        return []
    return [
        f"context_parallel_degree: {size} has to divide the {heads} attention heads of a tensor rank, and "
        f"divide or be a multiple of its {key_heads} key heads"
    ]


def _words(sizes: Mapping[str, int]) -> str:
    given = [f"{key}: {size}" for key, size in sizes.items() if size > 1]
    return ", ".join(given) or "degrees of 1"
