"""Several runs of the loop, one after the other over the same processes: starting processes takes seconds."""

from pathlib import Path

from erniekit.config.load import load_config
from erniekit.testing.distributed import run_distributed


def run_together(nproc: int, runs: dict[str, tuple[Path, list[str]]], timeout: float = 600) -> None:
    """Train by each configuration file with its overrides, each process on one thread."""
    found = run_distributed(
        "tests.train.together:run_all",
        nproc,
        {name: (str(path), words) for name, (path, words) in runs.items()},
        timeout=timeout,
    )
    assert found == [dict.fromkeys(runs, 0)] * nproc


def run_all(runs: dict[str, tuple[str, list[str]]]) -> dict[str, int]:
    """What every process does; the exit code of each run."""
    from erniekit.parallel import comm
    from erniekit.train.session import train_session

    world = comm.open_world()
    comm.open_world = lambda **_: world
    return {
        name: train_session(load_config(path, words, verb="train")) for name, (path, words) in runs.items()
    }
