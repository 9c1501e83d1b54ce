"""The three ways to start a run of two processes give one and the same run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import erniekit
from erniekit.parallel.rendezvous import free_port
from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import command, run_erniekit, write_run
from tests.house.sources import ROOT

pytestmark = pytest.mark.slow

PLAN = ("expert_parallel_degree=2", "moe_group=dp")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a configuration, and what the command made of it by itself."""
    folder = tmp_path_factory.mktemp("started")
    keys = {"max_steps": 4, "evaluation_strategy": "no", "compute_type": "fp32"}
    path = write_run(folder, tiny_moe_config(), gradient_accumulation_steps=1, **keys)
    done = run_erniekit(
        "train", str(path), *PLAN, "nproc_per_node=2", f"output_dir={folder}/own", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "own/logs/rank-1.log").is_file() and "step 4/4" in (
        folder / "own/logs/rank-0.log"
    ).read_text()
    assert done.stderr.count("step 4/4") == 1  # one progress of all
    return folder


def same(started: Path, name: str) -> bool:
    files = ("train_log.jsonl", "checkpoint-4/model.safetensors", "checkpoint-4/optimizer.safetensors")
    return all(
        (started / name / file).read_bytes() == (started / "own" / file).read_bytes() for file in files
    )


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **more}


def test_by_paddles_launcher(started: Path) -> None:
    main = Path(erniekit.__file__).parent / "__main__.py"
    words = ["-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", str(started / "logs")]
    done = subprocess.run(
        [sys.executable, *words, str(main), "train", str(started / "run.yaml"), *PLAN]
        + [f"output_dir={started}/launched"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert same(started, "launched")


def test_by_two_machines(started: Path) -> None:
    """Two commands that stand for machines, with one process each."""
    meeting = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    parents = [
        subprocess.Popen(
            command("train", str(started / "run.yaml"), *PLAN, f"output_dir={started}/machines"),
            env=environment(**meeting, NODE_RANK=str(number)),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in (1, 0)
    ]
    try:
        said = [parent.communicate(timeout=300)[0] for parent in parents]
    finally:
        for parent in parents:
            parent.kill()
    assert [parent.returncode for parent in parents] == [0, 0], said
    assert same(started, "machines")
    assert (started / "machines/logs/rank-1.log").is_file()
