"""The benchmark of adapters runs on a tiny model, and its figures are those of the fastest and leanest."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("lora_step")


def test_it_times_our_step(benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    words = ["--model", str(folder), "--batch", "1", "--length", "16", "--quick", "--full"]
    assert benchmark.main([*words, "--peer", "none", "--ours", "bf16", "fp32"]) == 0
    told = capsys.readouterr().out
    assert "adapter of rank 8" in told and "ErnieKit, all parameters, bf16" in told
    figures = json.loads(told.splitlines()[-1])
    assert figures["tokens_per_s"] > 0 and figures["losses_agree"]
    assert figures["ratio_best"] is None and figures["memory_ratio"] is None


def runs(benchmark: ModuleType, loss: float, seconds: list[float], gigabytes: float):
    result = {"name": "it", "losses": [loss], "seconds": seconds, "peak_rss_bytes": gigabytes * 1e9}
    return benchmark.Measured([result])


def test_ratios_are_to_the_fastest_and_to_the_leanest(
    benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sides = {
        "ours": {"bf16": runs(benchmark, 5.001, [1.0, 3.0, 2.0], 1.0)},
        "torch": {
            "bf16_autocast": runs(benchmark, 5.002, [4.0], 5.0),
            "bf16_pure": runs(benchmark, 5.003, [6.0], 2.5),
        },
        "full": {},
    }
    where = {**benchmark.machine(), "load_average_before": 0.0}
    work = benchmark.Work("folder", 4, 512)
    assert benchmark.report(work, 8, sides, where, []) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["ratio_best"], figures["memory_ratio"]) == (2.0, 0.4)
    sides["torch"]["bf16_pure"] = runs(benchmark, 6.0, [6.0], 2.5)
    assert benchmark.report(work, 8, sides, where, []) == 1
    assert "first losses differ" in capsys.readouterr().out
