"""The points of the series, and the comparison that they are for."""

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint


@pytest.fixture(scope="module")
def scaling(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("scaling")


def test_points_are_measured(scaling: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_tiny_checkpoint(tmp_path / "model")
    words = ["--model", str(folder), "--series", "length", "--lengths", "16", "520", "--steps", "1"]
    assert scaling.main([*words, "--warm-up", "0"]) == 0
    points = json.loads(capsys.readouterr().out.splitlines()[-1])["points"]
    assert [(p["series"], p["length"], p["sample"]) for p in points] == [
        ("length", 16, 0),
        ("length", 520, 0),
        ("packed", 520, 512),
    ]
    assert all(p["tokens_per_s"] > 0 and p["peak_rss_gb"] > 0.1 for p in points)


def test_models_and_points(scaling: ModuleType, tmp_path: Path) -> None:
    models = scaling.write_models(tmp_path)
    config = json.loads((Path(models["ERNIE-4.5-0.3B"]) / "config.json").read_text())
    assert config["vocab_size"] == 103424 and config["num_hidden_layers"] == 18
    options = Namespace(series=scaling.SERIES, model="m", lengths=[512, 8192], batches=[1, 2])
    alone = scaling.choose_points(options, "folder", models, with_torch=False)
    assert [point.series for point in alone] == ["length"] * 2 + ["packed"] + ["batch"] * 2 + ["model"] * 4
    both = scaling.choose_points(options, "folder", models, with_torch=True)
    assert {point.mode for point in both if point.side == "torch"} == set(scaling.TORCH)


def row(series: str, side: str, mode: str, length: int, peak: float) -> dict[str, Any]:
    return {"series": series, "side": side, "mode": mode, "length": length, "peak_rss_gb": peak}


def test_comparison(scaling: ModuleType) -> None:
    rows = [
        row("packed", "ErnieKit", "bf16", 1024, 1.0),
        row("packed", "ErnieKit", "bf16", 8192, 4.0),
        row("length", "ErnieKit", "bf16", 8192, 9.0),
        row("torch", "torch", "bf16_autocast", 2048, 6.0),
        row("torch", "torch", "bf16_autocast_chunked", 2048, 5.0),
        row("torch", "torch", "bf16_pure", 2048, 3.0),
    ]
    found = scaling.compare(rows)
    assert found["tokens"] == 8192 and found["torch_peak_rss_gb"] == 5.0 and found["holds"] is True
    rows[1]["peak_rss_gb"] = 5.5
    assert scaling.compare(rows)["holds"] is False
    rows[1]["error"] = "no memory"
    assert scaling.compare(rows)["tokens"] == 1024
    assert scaling.compare(rows[3:]) is None


def test_a_failure_is_told(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def fail(*words: Any, **more: Any) -> None:
        raise scaling.WorkerError("it ended\nMemoryError")

    monkeypatch.setattr(scaling, "run_worker", fail)
    options = Namespace(steps=1, warm_up=0, kernels="auto")
    found = scaling.measure(scaling.Point("length", "ErnieKit", "m", "f", 1, 8), options, None)
    assert found["error"] == "MemoryError"
    assert scaling.report([found], {}) == 1
    assert "failed" in capsys.readouterr().out
