"""The processes of a run: they meet, take their places, and are told what is not built for several."""

from collections.abc import Mapping
from typing import Any

from erniekit.errors import UnsupportedError
from erniekit.parallel import comm
from erniekit.parallel.layout import choose_layout
from erniekit.parallel.mesh import Mesh, open_mesh

_LAYOUT = (
    *("tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree"),
    *("context_parallel_degree", "expert_parallel_degree", "moe_group", "sharding"),
)


def open_processes(
    keys: Mapping[str, Any], others: Mapping[str, Any], identity: Mapping[str, str], *, ddp_timeout: int
) -> Mesh:
    """Meet the other processes and open the groups of this one.

    Args:
        keys: of the section of parallelism. others: keys of other sections that do not go with all of them.
        identity: what has to be equal in all processes.
        ddp_timeout: seconds to wait for another process, now and later.

    Raises:
        ConfigError: the degrees do not fit each other or the number of processes.
        PeerError: a process did not come.
        UnsupportedError: what is asked for is not built over several processes.
    """
    world = comm.open_world(identity=identity, patience=ddp_timeout)
    layout = choose_layout(world.size, **{key: keys[key] for key in _LAYOUT})
    refused = {
        f"recompute: auto with pipeline_parallel_degree: {layout.pipeline}": (
            layout.pipeline > 1 and others["recompute"] == "auto"
        ),
        f"sharding: {keys['sharding']} with pipeline_parallel_degree: {layout.pipeline}": (
            layout.pipeline > 1 and layout.sharding > 1 and keys["sharding"] in ("stage2", "stage3")
        ),
        f"ref_logps: model with pipeline_parallel_degree: {layout.pipeline}": (
            layout.pipeline > 1 and others["stage"] == "DPO" and others["ref_logps"] == "model"
        ),
        f"ref_model_update_steps with pipeline_parallel_degree: {layout.pipeline}": (
            layout.pipeline > 1 and others["stage"] == "DPO" and others["ref_model_update_steps"] > 0
        ),
    }
    for words, present in refused.items():
        if present:
            raise UnsupportedError(f"{words} is not built for {world.size} processes; leave it out")
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
