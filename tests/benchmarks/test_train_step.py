"""The benchmark runs on a tiny model, in processes of its own, and notices unequal work."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.house.sources import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks/train_step.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_step"] = module
    spec.loader.exec_module(module)
    return module


def test_it_times_our_step(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    words = ["--model", str(folder), "--batch", "1", "--length", "16", "--steps", "2", "--rounds", "1"]
    assert benchmark.main(words) == 0
    told = capsys.readouterr().out
    assert "machine: " in told
    assert "tokens/s" in told and "first loss" in told


def result(name: str, loss: float, seconds: list[float]) -> dict[str, Any]:
    return {"name": name, "loss": loss, "seconds": seconds, "peak_memory_bytes": 2**30}


def test_ratio_and_unequal_work(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    work = benchmark.Work("model", 1, 16, 2)
    rounds = {"erniekit": [result("ours", 5.0, [1.0, 3.0, 2.0])], "peer": [result("peer", 5.001, [4.0])]}
    assert benchmark._report(work, rounds, load=0.0) == 0
    assert "0.50 times the peer's time" in capsys.readouterr().out
    rounds["peer"] = [result("peer", 5.1, [4.0])]
    assert benchmark._report(work, rounds, load=0.0) == 1
    assert "differ" in capsys.readouterr().out


def test_tokens_are_in_the_vocabulary_and_differ(benchmark: ModuleType) -> None:
    rows = benchmark.token_rows(100, benchmark.Work("model", 2, 32, 1))
    assert len(rows) == 2 and all(len(row) == 32 for row in rows)
    assert all(0 <= token < 100 for row in rows for token in row)
    assert rows[0] != rows[1]
