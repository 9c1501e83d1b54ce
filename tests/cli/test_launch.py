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
