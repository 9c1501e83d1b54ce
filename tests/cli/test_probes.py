"""Probes answer within their time, whatever is on the other side."""

import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from erniekit.cli import probes


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/ok" else 404)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Nothing into the test's output."""


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Pages) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def test_services_answer_or_say_why_not(server: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        services = {
            "good": f"{server}/ok",
            "missing page": f"{server}/gone",
            "silent": f"http://127.0.0.1:{silent.getsockname()[1]}/",
            "no address": "nonsense",
        }
        started = time.monotonic()
        answers = probes.ask_services(services, seconds=0.5)
        assert time.monotonic() - started < 10
    assert answers["good"].startswith("answers (")
    assert answers["missing page"].startswith("answers with HTTP 404")
    assert answers["silent"].startswith("no answer")
    assert answers["no address"].startswith("no answer")


def test_credentials_are_left_out() -> None:
    assert probes.without_credentials("https://me:secret@index.example/simple") == (
        "https://***@index.example/simple"
    )
    assert probes.without_credentials("https://index.example/a@b") == "https://index.example/a@b"
    assert probes.without_credentials("0,1") == "0,1"


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A stand-in for the interpreter that Paddle is imported in."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    return program


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo 'libgomp.so: cannot open' >&2; exit 1", "libgomp.so: cannot open"),
        ("kill -ILL $$", "ended by signal 4"),
        ("sleep 5", "took more than 0.3 s"),
    ],
)
def test_a_broken_paddle_is_told_of(python: Path, script: str, reason: str) -> None:
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    assert reason in probes.paddle_facts(0.3 if "sleep" in script else 60)["error"]


def test_facts_are_taken_from_among_other_output(python: Path) -> None:
    python.write_text('#!/bin/sh\necho noise\necho \'FACTS {"version": "9"}\'\n')
    python.chmod(0o755)
    assert probes.paddle_facts(60) == {"version": "9"}
