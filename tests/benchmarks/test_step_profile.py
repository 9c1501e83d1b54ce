"""A profile accounts for the whole step, with either kind of kernels."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.benchmarks.conftest import FOLDER


@pytest.fixture(scope="module")
def profile(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("step_profile")


@pytest.mark.parametrize("kernels", ["native", "paddle"])
def test_profile(profile: ModuleType, tmp_path: Path, kernels: str) -> None:
    """In a process of its own: it chooses kernels for the process, and Paddle's profiler is global."""
    if kernels == "native" and find_library().library is None:
        pytest.skip("native kernels do not run here")
    folder = write_tiny_checkpoint(tmp_path / "model")
    words = ["--model", str(folder), "--batch", "2", "--length", "16", "--steps", "1", "--kernels", kernels]
    environment = {k: v for k, v in os.environ.items() if k != "ERNIEKIT_KERNELS"}
    done = subprocess.run(
        [sys.executable, str(FOLDER / "step_profile.py"), *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": str(FOLDER.parent)},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    names = {part["name"] for part in figures["parts"]}
    assert figures["kernels"] == kernels and figures["step_s"] > 0
    if kernels == "native":
        assert {"ek_gemm", "Python, and Paddle's operators"} <= names
        total = sum(part["ms"] for part in figures["parts"])
        assert total == pytest.approx(figures["step_s"] * 1e3, abs=0.2)
    else:
        assert any("matmul" in name for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]  # no trace is left


def test_the_clock_counts_calls(profile: ModuleType) -> None:
    class Library:
        def declare(self, name: str, *types: object, result: object = None) -> Callable[[int], int]:
            return lambda x: x + 1

    clock, library = profile.Clock(), Library()
    clock.watch(library)
    assert library.declare("f")(1) == 2 and library.declare("f")(2) == 3 and library.declare("g")(3) == 4
    assert dict(clock.calls) == {"f": 2, "g": 1} and clock.seconds["f"] > 0
    clock.reset()
    assert not clock.calls
