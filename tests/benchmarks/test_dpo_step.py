"""The DPO benchmark: its workers run, its figures are right."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint

RESULT = {
    "name": "x",
    "losses": [0.6931472, 0.6],
    "seconds": [0.5, 0.25, 0.75],
    "peak_rss_bytes": 2_000_000_000,
}
WHERE = {"processor": "p", "cores": 2, "instruction_sets": [], "load_average_before": 0.0}


@pytest.fixture(scope="module")
def dpo_step(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("dpo_step")


def test_our_side_begins_at_ln_2(
    dpo_step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    words = ["--model", str(folder), "--peer", "none", "--quick", "--ours", "fp32", "--batch", "2"]
    assert dpo_step.main([*words, "--length", "64"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["losses_agree"] and last["ratio_best"] is None and last["tokens_per_s"] > 0


def test_figures(dpo_step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def measured(**changes: Any) -> Any:
        return dpo_step.Measured([{**RESULT, **changes}])

    trl = {
        "bf16_autocast": measured(seconds=[1.0], peak_rss_bytes=3_000_000_000),
        "bf16_pure": measured(seconds=[2.0], peak_rss_bytes=2_500_000_000),
    }
    work = dpo_step.Work("model", 2, 64)
    assert dpo_step.report(work, {"bf16": measured()}, trl, WHERE, []) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["tokens_per_s"] == 256.0 and last["ratio_best"] == 2.0
    assert last["memory_ratio"] == 0.8 and last["losses_agree"]


def test_a_loss_that_is_not_ln_2_is_told(dpo_step: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = dpo_step.Measured([{**RESULT, "losses": [0.9]}])
    assert dpo_step.report(dpo_step.Work("model", 2, 64), {"bf16": wrong}, {}, WHERE, []) == 1
    assert "not ln 2" in capsys.readouterr().out
