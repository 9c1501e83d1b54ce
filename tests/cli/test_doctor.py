"""The report of `doctor`: what is in it, what is never in it, when it is an error."""

import importlib.metadata
import importlib.util
import json
from typing import Any

import pytest

from erniekit.cli import doctor, probes
from erniekit.cli.doctor import Report, examine, run, variables
from erniekit.errors import ConfigError

REQUIRES = [
    "numpy<2.4,>=1.26",
    "pyyaml>=6",
    'paddlepaddle<3.4,>=3.3; extra == "cpu"',
    'ruff>=1; extra == "dev"',
]


@pytest.fixture(autouse=True)
def installation(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An installation with everything right; tests change the versions."""
    versions = {"numpy": "2.3.5", "pyyaml": "6.0", "paddlepaddle": "3.3.1"}

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(probes, "paddle_facts", lambda: {"version": "3.3.1"})
    monkeypatch.setattr(probes, "kernel_facts", lambda: {"native kernels": "run here"})
    return versions


def test_a_right_installation_has_no_errors() -> None:
    report = examine(offline=True)
    assert report.errors == []
    assert report.facts["packages"] == {"numpy": "2.3.5", "pyyaml": "6.0"}
    assert report.facts["extras"] == {"cpu": "installed", "dev": "not installed (lacks ruff)"}
    assert "network" not in report.facts
    assert {"software", "paddle", "machine", "disk", "environment variables"} <= set(report.facts)


def test_a_version_out_of_range_is_an_error(installation: dict[str, str]) -> None:
    installation["numpy"] = "2.4.1"
    errors = examine(offline=True).errors
    assert len(errors) == 1
    assert "numpy 2.4.1 is outside" in errors[0]


def test_a_missing_core_package_is_an_error(installation: dict[str, str]) -> None:
    del installation["pyyaml"]
    assert any("pyyaml is missing" in text for text in examine(offline=True).errors)


def test_a_paddle_that_crashes_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "paddle_facts", lambda: {"error": "its process was ended by signal 4"})
    assert any("signal 4" in text for text in examine(offline=True).errors)


def test_kernels_that_do_not_run_are_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine(offline=True).facts["kernels"] == {"native kernels": "run here"}
    why = "do not run: there is no C++ compiler"
    monkeypatch.setattr(probes, "kernel_facts", lambda: {"native kernels": why})
    report = examine(offline=True)
    assert report.errors == [] and any(why in text for text in report.notes)
    monkeypatch.setattr(probes, "kernel_facts", lambda: {"error": "its process was ended by signal 7"})
    assert any("signal 7" in text for text in examine(offline=True).errors)


def test_a_missing_paddle_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "paddle" else found(name))
    report = examine(offline=True)
    assert report.errors == []
    assert any("erniekit[cpu]" in text for text in report.notes)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:pass1@index.example/simple")
    monkeypatch.setenv("ERNIEKIT_CACHE", "/somewhere")
    monkeypatch.setenv("MY_PRIVATE", "nobody's business")
    shown = variables()
    assert shown["ERNIEKIT_CACHE"] == "/somewhere"
    assert "hf_abc" not in str(shown) and "HF_TOKEN" in shown
    assert "pass1" not in str(shown)
    assert "MY_PRIVATE" not in shown


def test_a_machine_without_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "ask_services", lambda: {"PyPI": "no answer (x)", "Hub": "no answer (x)"})
    report = examine(offline=False)
    assert report.facts["network"]["PyPI"] == "no answer (x)"
    assert any("no registry or hub answers" in text for text in report.notes)


def test_the_block_and_its_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    report = Report({"machine": {"cores": "2"}}, errors=["something"], notes=["by the way"])
    monkeypatch.setattr(doctor, "examine", lambda **words: report)
    assert run(["--offline"]) == 1
    told = capsys.readouterr().out
    assert "**machine**\n\n- cores: 2\n" in told
    assert "- error: something\n- note: by the way" in told
    report.errors.clear()
    assert run(["--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["facts"] == {"machine": {"cores": "2"}}


def test_unknown_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="--ofline"):
        run(["--ofline"])
