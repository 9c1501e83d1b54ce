"""Processes take their places, are told what is not built for them, and write together."""

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
OTHERS = {"stage": "SFT", "recompute": False, "ref_logps": "", "ref_model_update_steps": 0}


def take_places() -> dict[str, Any]:
    from erniekit.train.processes import Crew, open_processes

    mesh = open_processes(KEYS, OTHERS, {"version": "1"}, ddp_timeout=200)
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


def be_refused() -> str:
    from erniekit.errors import UnsupportedError
    from erniekit.train.processes import open_processes

    keys = {**KEYS, "tensor_parallel_degree": 1, "pipeline_parallel_degree": 2, "moe_group": "dummy"}
    try:
        open_processes(keys, {**OTHERS, "recompute": "auto"}, {}, ddp_timeout=200)
    except UnsupportedError as error:
        return str(error)
    return ""


def test_what_is_not_built_is_told_in_every_process() -> None:
    for told in run_distributed(f"{HERE}:be_refused", 2, timeout=240):
        assert told.startswith(
            "recompute: auto with pipeline_parallel_degree: 2 is not built for 2 processes"
        )
