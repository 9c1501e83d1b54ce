"""The benchmark runs on a tiny model, in processes of its own, and notices unequal work."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("train_step")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


def test_it_times_our_step(benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(folder), "--batch", "1", "--length", "16", "--rounds", "1", "--gemm-seconds", "0"]
    assert benchmark.main([*words, "--peer", "none", "--ours", "bf16", "fp32"]) == 0
    told = capsys.readouterr().out
    assert "machine: " in told and "no peer" in told and "ErnieKit fp32" in told
    figures = json.loads(told.splitlines()[-1])
    assert figures["tokens_per_s"] == figures["ours"]["bf16"]["tokens_per_s"] > 0
    assert figures["peak_rss_gb"] > 0.1
    assert figures["torch"] == {} and figures["ratio_best"] is None and figures["mfu"] is None
    assert figures["losses_agree"]


def runs(benchmark: ModuleType, loss: float, seconds: list[float], gigabytes: float) -> Any:
    result = {"name": "it", "losses": [loss], "seconds": seconds, "peak_rss_bytes": gigabytes * 1e9}
    return benchmark.Measured([result])


def sides(benchmark: ModuleType) -> tuple[dict[str, Any], dict[str, Any]]:
    ours = {
        "bf16": runs(benchmark, 5.001, [1.0, 3.0, 2.0], 3.0),
        "bf16_lowprecision_moment": runs(benchmark, 5.001, [2.0], 2.4),
    }
    torch = {
        "fp32": runs(benchmark, 5.0, [9.0], 7.0),
        "bf16_autocast": runs(benchmark, 5.002, [5.0], 6.0),
        "bf16_autocast_chunked": runs(benchmark, 5.002, [4.0], 5.0),
        "bf16_pure": runs(benchmark, 5.003, [4.5], 4.0),
        "bf16_pure_chunked": runs(benchmark, 5.003, [4.5], 3.0),
    }
    return ours, torch


def figures_of(
    benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str], *parts: Any
) -> tuple[int, dict[str, Any]]:
    work = benchmark.Work(str(folder), 4, 512)
    where = {**benchmark.machine(), "load_average_before": 0.0}
    code = benchmark.report(work, *parts[:2], {"ours": 800.0, "torch": 850.0}, where, parts[2])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_figures(benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, figures = figures_of(benchmark, folder, capsys, *sides(benchmark), [])
    assert code == 0
    assert figures["tokens_per_s"] == 2048 / 2.0
    assert figures["ratio_best"] == 4.0 / 2.0
    assert figures["memory_ratio_same_precision"] == 0.6  # 2.4 of 4.0; the other pair is 3.0 of 6.0
    assert figures["memory_ratio_chunked"] == 0.8
    assert figures["gemm_peak_gflops"] == 850.0
    flops = 1024 * figures["model_flops_per_token"]
    assert figures["mfu"] == pytest.approx(flops / 850e9, abs=1e-4)
    assert set(figures["torch"]) == set(benchmark.TORCH)


def test_unequal_work_and_failures_are_told(
    benchmark: ModuleType, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, torch = sides(benchmark)
    torch["bf16_pure"] = runs(benchmark, 5.1, [4.0], 4.0)
    code, figures = figures_of(benchmark, folder, capsys, ours, torch, [])
    assert code == 1 and figures["losses_agree"] is False
    assert [text for text in benchmark.unequal(ours, torch) if "torch bf16_pure 5.1" in text]
    code, figures = figures_of(benchmark, folder, capsys, *sides(benchmark), ["step_ours.py ended with 1"])
    assert code == 1 and figures["failed_modes"] == 1
    ours, torch = sides(benchmark)
    ours["bf16"] = runs(benchmark, float("nan"), [1.0], 3.0)
    assert len(benchmark.unequal(ours, torch)) == 1


def test_turns(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slow modes are run once; a mode that fails is left out and told."""
    asked: list[str] = []

    def worker(python: str, name: str, words: list[str], **more: Any) -> dict[str, Any]:
        mode = words[words.index("--mode") + 1]
        asked.append(mode)
        if name == "step_ours.py" and mode == "fp32":
            raise benchmark.WorkerError("no memory")
        seconds = {"fp32": 9.0, "bf16_autocast": 4.0}.get(mode, 3.0)
        assert bool(more["environment"]) == (name == "step_torch.py")
        return {"name": "it", "losses": [5.0], "seconds": [seconds], "peak_rss_bytes": 1e9}

    monkeypatch.setattr("measure.run_worker", worker)
    ours = {mode: benchmark.Measured() for mode in ("bf16", "fp32")}
    torch = {mode: benchmark.Measured() for mode in benchmark.TORCH}
    failures: list[str] = []
    for _ in range(2):
        benchmark._take_turns(benchmark.Work("m", 1, 2), ours, torch, "python", failures, kernels="auto")
    assert failures == ["no memory"] and list(ours) == ["bf16"]
    assert asked.count("fp32") == 2  # ours once, the peer's once
    assert asked.count("bf16_autocast") == 4  # two of the peer's modes, twice


def test_tokens_are_in_the_vocabulary_and_differ(benchmark: ModuleType) -> None:
    from measure import token_rows

    rows = token_rows(100, benchmark.Work("model", 2, 32))
    assert len(rows) == 2 and all(len(row) == 32 for row in rows)
    assert all(0 <= token < 100 for row in rows for token in row)
    assert rows[0] != rows[1]


def test_without_a_peer_it_says_so(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    environment = script("peer_environment")
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(environment, "install", lambda folder: "no network")
    assert environment.find_peer("none") is None
    assert environment.find_peer("auto") is None
    assert "only ErnieKit is measured: no network" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is no Python"):
        environment.find_peer("/no/such/python")
