"""The benchmark of quantised weights runs on a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from erniekit.testing.tiny_run import write_run


def test_it_runs(
    script: Callable[[str], ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path, fine_tuning="LoRA", lora_rank=4)
    words = ["--config", str(config), "--types", "bf16", "wint8", "--steps", "4"]
    assert script("quantised").main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["types"]
    assert 0 < found["wint8"]["weight_bytes"] < found["bf16"]["weight_bytes"]
    assert all(row["peak_bytes"] > 0 and row["tokens_per_s"] > 0 for row in found.values())
    assert all(row["loss_after"] < row["loss_before"] for row in found.values())
