"""The frame of the command line: dispatch and exit codes, in real processes."""

import subprocess
import sys
from pathlib import Path

import pytest

import erniekit
from erniekit.cli.main import main

ROOT = Path(erniekit.__file__).parent.parent


def run(*words: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "erniekit", *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        timeout=120,
        check=False,
    )


def test_an_unknown_command_is_wrong_input() -> None:
    done = run("trian")
    assert done.returncode == 2
    assert "did you mean erniekit train?" in done.stderr
    assert run("help", "trian").returncode == 2


def test_interruption_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(argv: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("erniekit.cli.version.run", interrupt)
    assert main(["version"]) == 130


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    line = f"'{sys.executable}' -m erniekit config reference | head -1"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.stdout.startswith("<!--")
    assert done.stderr == ""


def test_a_defect_is_told_with_its_traceback() -> None:
    lines = [
        "import sys, erniekit.cli.version as version, erniekit.cli.main as cli",
        "def fail(argv): raise ZeroDivisionError('nothing [bold] to divide by')",
        "version.run = fail",
        "sys.argv = ['erniekit', 'version']",
        "sys.exit(cli.main())",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    traceback, message = done.stderr.split("error: unexpected ", 1)
    assert traceback.startswith("Traceback") and "in fail" in traceback
    assert message.startswith("ZeroDivisionError: nothing [bold] to divide by")
    assert "erniekit doctor" in message and "traceback is above" in message.replace("\n", " ")
