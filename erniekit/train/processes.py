"""The processes of a run: they meet and take their places."""

from collections.abc import Mapping
from typing import Any

from erniekit.parallel import comm
from erniekit.parallel.layout import choose_layout
from erniekit.parallel.mesh import Mesh, open_mesh

LAYOUT_KEYS = (
    *("tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree"),
    *("context_parallel_degree", "expert_parallel_degree", "moe_group", "sharding"),
)


def open_processes(keys: Mapping[str, Any], identity: Mapping[str, str], *, ddp_timeout: int) -> Mesh:
    """Meet the other processes and open the groups of this one.

    Args:
        keys: of the section of parallelism.
        identity: what has to be equal in all processes.
        ddp_timeout: seconds to wait for another process, now and later.

    Raises:
        ConfigError: the degrees do not fit each other or the number of processes.
        PeerError: a process did not come.
    """
    world = comm.open_world(identity=identity, patience=ddp_timeout)
    layout = choose_layout(world.size, **{key: keys[key] for key in LAYOUT_KEYS})
    return open_mesh(layout, world)


class Crew:
    """The processes of a run where they write a checkpoint together (`checkpoint/crew.py`)."""

    def __init__(self, mesh: Mesh) -> None:
        # Of their own, so that a save in the background and a step do not meet.
        self._group = comm.open_group(mesh.world.ranks, "saving")
        self.is_first = mesh.world.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """The value that each process gave, in their order."""
        return comm.gather_objects(value, self._group)
