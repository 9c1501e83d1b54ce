"""The benchmark of what is not arithmetic runs on a tiny model, start of a run included."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from erniekit.testing.tiny_run import write_run


def test_it_runs(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path)
    model, data = str(tmp_path / "model"), str(tmp_path / "train.jsonl")
    words = ["--model", model, "--data", data, "--batch", "1", "--length", "32"]
    assert script("overhead").main(words) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    parts = [figures[f"{name}_ms"] for name in ("operators", "data", "logs")]
    assert all(part > 0 for part in parts)
    # The step of so small a model is told in four decimals, two digits of it.
    assert figures["share"] == pytest.approx(sum(parts) / 1e3 / figures["step_s"], rel=0.1)
    assert 0 < figures["start_screen_s"] < figures["end_of_the_first_step_s"]
