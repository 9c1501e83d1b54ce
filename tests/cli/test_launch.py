import os
import subprocess
import sys

import pytest

from erniekit.cli import launch
from erniekit.errors import ConfigError, UnsupportedError


def test_without_paddle_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"erniekit\[cpu\]") as caught:
        launch.require_paddle()
    assert caught.value.exit_code == 2


def test_the_math_library_is_set_on_amd_only_and_never_against_the_user(monkeypatch):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(launch, "_is_amd", lambda: False)
    launch.prepare_environment()
    assert "MKL_DEBUG_CPU_TYPE" not in launch.os.environ
    monkeypatch.setattr(launch, "_is_amd", lambda: True)
    launch.prepare_environment()
    assert launch.os.environ["MKL_DEBUG_CPU_TYPE"] == "5"
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    launch.prepare_environment()
    assert launch.os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


def test_every_usable_core_computes_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(launch, "usable_cores", lambda: 3.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch.prepare_environment()
    assert launch.os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(launch, "usable_cores", lambda: 0.5)
    launch.prepare_environment()
    assert launch.os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    launch.prepare_environment()
    assert launch.os.environ["OMP_NUM_THREADS"] == "1"


def test_paddles_remark_on_threads_is_not_repeated():
    script = "from erniekit.cli.launch import require_paddle; require_paddle()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert "OMP_NUM_THREADS" not in done.stderr and done.stdout == ""


NAMES = (
    *(
        "PADDLE_TRAINER_ID",
        "PADDLE_TRAINERS_NUM",
        "NNODES",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
        "RANK",
    ),
    *(
        "SLURM_STEP_NUM_NODES",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_NODEID",
        "PADDLE_NODE_RANK",
        "CUDA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
    ),
)


@pytest.fixture
def empty(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_how_many_processes(empty):
    assert launch.processes_here(3, "cpu") == 3 and launch.processes_here(0, "cpu") == 1
    empty.setenv("CUDA_VISIBLE_DEVICES", "0,2")
    assert launch.processes_here(0, "auto") == 2 and launch.processes_here(0, "gpu:1") == 1
    empty.setenv("CUDA_VISIBLE_DEVICES", "")
    assert launch.processes_here(0, "auto") == 1
    assert launch.num_processes() == 1 and not launch.is_rank()


def test_a_rank_and_one_process_do_the_work_themselves(empty):
    keys = {"nproc_per_node": 1, "device": "cpu", "output_dir": "nowhere"}
    assert launch.start_ranks(["train"], **keys) is None
    empty.setenv("PADDLE_TRAINER_ID", "1")
    assert launch.start_ranks(["train"], **{**keys, "nproc_per_node": 2}) is None


def test_one_machine(empty):
    node = launch.this_node()
    assert (node.number, node.count) == (0, 1) and node.master.startswith("127.0.0.1:")
    places = launch.rank_environments(launch.Node(0, 1, "127.0.0.1:4000"), 2)
    assert list(places) == [0, 1]
    assert places[1]["PADDLE_TRAINER_ID"] == "1" and places[1]["PADDLE_TRAINERS_NUM"] == "2"
    assert places[1]["PADDLE_MASTER"] == "127.0.0.1:4000" and places[1]["MASTER_PORT"] == "4000"
    assert places[1]["PADDLE_CURRENT_ENDPOINT"] == "127.0.0.1:4002"
    assert int(places[0]["OMP_NUM_THREADS"]) >= 1


@pytest.mark.parametrize("names", [("NNODES", "NODE_RANK"), ("SLURM_STEP_NUM_NODES", "SLURM_NODEID")])
def test_several_machines(empty, names):
    empty.setenv(names[0], "2")
    with pytest.raises(ConfigError, match="on 2 machines .* MASTER_ADDR and MASTER_PORT do not say"):
        launch.this_node()
    empty.setenv("MASTER_ADDR", "127.0.0.1")
    empty.setenv("MASTER_PORT", "4000")
    empty.setenv(names[1], "1")
    node = launch.this_node()
    assert node == launch.Node(1, 2, "127.0.0.1:4000")
    places = launch.rank_environments(node, 2)
    assert list(places) == [2, 3] and places[3]["PADDLE_TRAINERS_NUM"] == "4"
    assert places[3]["PADDLE_LOCAL_RANK"] == "1"
    empty.setenv(names[1], "2")
    with pytest.raises(ConfigError, match="NODE_RANK is 2, and there are 2 machines"):
        launch.this_node()


@pytest.mark.parametrize("name", ["NNODES", "NODE_RANK", "MASTER_PORT"])
def test_what_is_no_number_is_named(empty, name):
    numbers = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "4000"}
    for each, value in {**numbers, name: "2:4"}.items():
        empty.setenv(each, value)
    with pytest.raises(ConfigError, match=f"{name}=2:4 .* write a whole number"):
        launch.this_node()


def test_one_task_a_machine_under_slurm(empty):
    for name, value in {"NUM_NODES": "2", "NUM_TASKS": "8"}.items():
        empty.setenv(f"SLURM_STEP_{name}", value)
    empty.setenv("MASTER_ADDR", "127.0.0.1")
    empty.setenv("MASTER_PORT", "4000")
    with pytest.raises(ConfigError, match="Slurm starts 8 tasks on 2 machines.*--ntasks-per-node=1"):
        launch.this_node()
    empty.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert launch.this_node() == launch.Node(0, 2, "127.0.0.1:4000")


def test_a_first_machine_without_an_address(empty):
    empty.setattr(launch, "_NAME_SECONDS", 0.1)
    with pytest.raises(ConfigError, match="MASTER_ADDR: nowhere.invalid cannot be found from this machine"):
        launch.rank_environments(launch.Node(1, 2, "nowhere.invalid:4000"), 1)
