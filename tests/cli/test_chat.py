"""`erniekit chat` as a command; its conversation is tested in test_repl.py."""

import io
import json
from pathlib import Path

import pytest

from tests.cli.told import Told


def test_chat_reads_questions_from_a_pipe(
    tiny_run: Path, told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\nagain\n/save {tmp_path}/talk.jsonl\n"))
    code, out, err = told("chat", tiny_run / "model", "--system", "s", "max_new_tokens=5")
    assert code == 0, err
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[3]["content"] == "again"
