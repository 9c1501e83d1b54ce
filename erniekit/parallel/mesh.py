"""The groups of this process along every axis of a layout."""

from dataclasses import dataclass
from typing import Any

from erniekit.errors import ConfigError
from erniekit.parallel import comm
from erniekit.parallel.comm import Group
from erniekit.parallel.layout import Layout

# In the order in which every process opens them; the names under which traffic is counted.
AXES = (
    *("pipeline", "data", "sharding", "context", "tensor", "batch", "replicas", "stage"),
    *("expert", "expert_replicas", "tensor_sums", "shard_copies", "expert_shards", "expert_shard_copies"),
)


@dataclass(frozen=True)
class Mesh:
    """This process in a layout.

    Args:
        world: all processes.
        batch: data x sharding: those that read other sequences, for the same part of the model.
        replicas: data x sharding x context: those with equal copies of parameters that are no experts.
        stage: all of the same pipeline stage.
        expert: those that share the experts of this one's copy of them.
        expert_replicas: those with the same experts (and the same part of them).
        tensor_sums: those of `tensor`, for sums on a thread beside what that is used for.
        shard_copies: data x context: those with the same range of what the group `sharding` shares.
        expert_shards, expert_shard_copies: the same two of experts.
    """

    layout: Layout
    world: Group
    pipeline: Group
    data: Group
    sharding: Group
    context: Group
    tensor: Group
    batch: Group
    replicas: Group
    stage: Group
    expert: Group
    expert_replicas: Group
    tensor_sums: Group
    shard_copies: Group
    expert_shards: Group
    expert_shard_copies: Group


def open_mesh(layout: Layout, world: Group | None = None) -> Mesh:
    """Open the groups of every axis; all processes call it.

    Args:
        world: what `comm.open_world` gave; for one process a group of one.

    Raises:
        ConfigError: the layout is for another number of processes.
    """
    world = world or Group()
    if layout.world_size != world.size:
        raise ConfigError(f"the degrees are for {layout.world_size} processes, and {world.size} run")
    groups: dict[str, Any] = {}
    for axis in AXES:
        groups[axis] = comm.open_group(layout.ranks_along(axis, world.rank), axis)
    return Mesh(layout=layout, world=world, **groups)
