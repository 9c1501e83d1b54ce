"""The benchmark of experts runs on a tiny model, and its ratios are the least of the shapes."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.models.registry import read_model_config


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("moe_step")


def test_it_times_our_sides(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--shapes", "tiny", "--batch", "1", "--length", "32", "--quick", "--gemm-seconds", "0"]
    assert benchmark.main([*words, "--peer", "none"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    tiny = figures["shapes"]["tiny"]["ours"]
    assert set(tiny) == {"grouped", "loop", "dense"} and figures["problems"] == 0
    # The loop computes what the grouped product does.
    assert tiny["loop"]["first_loss"] == pytest.approx(tiny["grouped"]["first_loss"], rel=2e-3)
    assert figures["ratio_best"] is None and figures["ratio_dense_mfu"] > 0 and figures["ratio_loop"] > 0


@pytest.mark.parametrize("name", ["8-of-2", "64-of-6", "16-of-4"])
def test_the_dense_model_has_as_many_active_parameters(
    benchmark: ModuleType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("erniekit.checkpoint.files.write_tensors", lambda *arguments, **words: None)
    folders = benchmark.write_models(tmp_path, benchmark.SHAPES[name])
    moe, dense = (read_model_config(folders[kind]) for kind in ("moe", "dense"))
    assert all(moe.is_moe_layer(layer) for layer in range(moe.num_hidden_layers))
    routers = moe.parameters_by_part()["router"]
    assert moe.num_active_parameters() == dense.num_parameters() + routers
    assert routers < 0.02 * dense.num_parameters()


def runs(benchmark: ModuleType, loss: float, seconds: list[float]) -> Any:
    result = {"name": "it", "losses": [loss], "seconds": seconds, "peak_rss_bytes": 1e9}
    return benchmark.Measured([result])


def test_ratios(benchmark: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    sides = {
        "ours": {
            "grouped": runs(benchmark, 5.001, [2.0, 9.0, 1.0]),
            "loop": runs(benchmark, 5.0, [6.0]),
            "dense": runs(benchmark, 7.0, [1.5]),
        },
        "torch": {
            "bf16_autocast_eager": runs(benchmark, 5.002, [9.0]),
            "bf16_pure_grouped_mm": runs(benchmark, 5.003, [5.0]),
        },
    }
    failures: list[str] = []
    work = benchmark.Work("folder", 4, 512)
    flops = {"moe": 11e6, "dense": 10e6}
    slow = benchmark.summarise("8-of-2", work, sides, flops, failures)
    assert (slow["ratio_best"], slow["ratio_loop"], slow["ratio_dense_mfu"]) == (2.5, 3.0, 0.825)
    assert slow["ratio_same_states"] == pytest.approx(4.5, abs=1e-3)
    sides["torch"]["bf16_pure_grouped_mm"] = runs(benchmark, 6.0, [3.0])
    fast = benchmark.summarise("64-of-6", work, sides, flops, failures)
    assert len(failures) == 1 and "64-of-6: first losses differ" in failures[0]
    where = {**benchmark.machine(), "load_average_before": 0.0}
    shapes = {"8-of-2": slow, "64-of-6": fast}
    assert benchmark.report(shapes, {"batch": 4, "length": 512}, {"ours": 100.0}, where, failures) == 1
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["ratio_best"], figures["problems"]) == (1.5, 1)
    # 1024 tokens/s of 11 MFLOP, of 100 GFLOP/s
    assert figures["shapes"]["8-of-2"]["ours"]["grouped"]["mfu"] == pytest.approx(0.1126, abs=1e-4)
