import os
import subprocess
import sys

import pytest

from erniekit.cli import launch
from erniekit.errors import UnsupportedError


def test_without_paddle_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"erniekit\[cpu\]") as caught:
        launch.require_paddle()
    assert caught.value.exit_code == 2


def test_the_math_library_is_set_on_amd_only_and_never_against_the_user(monkeypatch):
    monkeypatch.delenv("MKL_DEBUG_CPU_TYPE", raising=False)
    monkeypatch.setattr(launch, "_is_amd", lambda: False)
    launch.prepare_environment()
    assert "MKL_DEBUG_CPU_TYPE" not in launch.os.environ
    monkeypatch.setattr(launch, "_is_amd", lambda: True)
    launch.prepare_environment()
    assert launch.os.environ["MKL_DEBUG_CPU_TYPE"] == "5"
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "4")
    launch.prepare_environment()
    assert launch.os.environ["MKL_DEBUG_CPU_TYPE"] == "4"


def test_every_usable_core_computes_unless_the_user_says_otherwise(monkeypatch):
    monkeypatch.setattr(launch, "usable_cores", lambda: 3.5)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launch.prepare_environment()
    assert launch.os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.setattr(launch, "usable_cores", lambda: 0.5)
    launch.prepare_environment()
    assert launch.os.environ["OMP_NUM_THREADS"] == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    launch.prepare_environment()
    assert launch.os.environ["OMP_NUM_THREADS"] == "1"


def test_paddles_remark_on_threads_is_not_repeated():
    script = "from erniekit.cli.launch import require_paddle; require_paddle()"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "2"},
    )
    assert "OMP_NUM_THREADS" not in done.stderr and done.stdout == ""
