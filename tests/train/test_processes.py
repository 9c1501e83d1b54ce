"""Processes take their places, and write together."""

from typing import Any

from erniekit.testing.distributed import run_distributed

HERE = "tests.train.test_processes"
KEYS: dict[str, Any] = {
    "tensor_parallel_degree": 2,
    "pipeline_parallel_degree": 1,
    "sharding_parallel_degree": -1,
    "context_parallel_degree": 1,
    "expert_parallel_degree": 1,
    "moe_group": "mp",
    "sharding": "",
}


def take_places() -> dict[str, Any]:
    from erniekit.train.processes import Crew, open_processes

    mesh = open_processes(KEYS, {"version": "1"}, ddp_timeout=200)
    crew = Crew(mesh)
    return {
        "sizes": [mesh.tensor.size, mesh.expert.size, mesh.batch.size],
        "rank": mesh.tensor.rank,
        "first": crew.is_first,
        "gathered": crew.gather(10 * mesh.world.rank),
    }


def test_two_processes_share_matrices_and_experts() -> None:
    found = run_distributed(f"{HERE}:take_places", 2, timeout=240)
    for rank, each in enumerate(found):
        assert each == {"sizes": [2, 2, 1], "rank": rank, "first": rank == 0, "gathered": [0, 10]}
