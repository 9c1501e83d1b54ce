"""Rates of matrix products: of a given function, and of the sides that are here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from types import ModuleType

import pytest

from erniekit.ops.kernels.library import onednn_path
from tests.benchmarks.conftest import FOLDER
from tests.house.sources import ROOT


def test_a_rate_is_that_of_the_median_call(
    script: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    gemm = script("gemm")
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0, 25.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert gemm.rate(lambda: None, 1000, 0.0) == 2e9 / 2.0 / 1e9


@pytest.mark.parametrize("side", ["ours", "onednn"])
def test_a_side_is_measured(side: str) -> None:
    if side == "onednn" and onednn_path() is None:
        pytest.skip("this Paddle has no oneDNN")
    command = [sys.executable, str(FOLDER / "gemm.py"), "--side", side, "--sizes", "64", "--seconds", "0.01"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1].removeprefix("RESULT "))["64"] > 0
