"""The benchmark of methods runs on a tiny model."""

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
    methods = ("Full", "PiSSA", "LoRA over wint8")
    words = ["--config", str(config), "--methods", *methods, "--steps", "4"]
    assert script("methods").main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    full, pissa, quantised = (result["methods"][name] for name in methods)
    assert 0 < quantised["weight_bytes"] < full["weight_bytes"]
    assert pissa["trained"] == quantised["trained"] < full["trained"]
    assert pissa["loss_before"] == pytest.approx(full["loss_before"], rel=1e-2)
    for row in (full, pissa, quantised):
        assert row["peak_bytes"] > 0 and row["tokens_per_s"] > 0
        assert row["loss_after"] < row["loss_before"]
