"""`erniekit chat` as a command; its conversation is tested in test_repl.py."""

import io
import json
from pathlib import Path

import pytest

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.adapters.models import disturb
from tests.cli.told import Told
from tests.train.test_contents import build, write


def test_chat_reads_questions_from_a_pipe(
    tiny_run: Path, told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hello\nagain\n/save {tmp_path}/talk.jsonl\n"))
    code, out, err = told("chat", tiny_run / "model", "--system", "s", "max_new_tokens=5")
    assert code == 0, err
    messages = json.loads((tmp_path / "talk.jsonl").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user", "assistant"]
    assert messages[3]["content"] == "again"


def test_adapters_are_switched(told: Told, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    words = ("--prompt", "hello", "max_new_tokens=12", "temperature=0")
    folders, expected = [], []
    for seed, name in enumerate(("one", "two")):
        built = build(source)
        disturb(built.adapter, seed=seed)
        folders.append(write(tmp_path / name, built, source))
        expected.append(told("chat", folders[-1], *words)[1].strip())
    expected.append(told("chat", source, *words)[1].strip())
    assert len(set(expected)) == 3
    asked = "hello\n/clear\n/adapter two\nhello\n/clear\n/adapter off\nhello\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(asked))
    given = f"lora_path={folders[0]},{folders[1]}"
    code, out, err = told("chat", source, given, "max_new_tokens=12", "temperature=0")
    assert code == 0, err
    places = [out.find(answer) for answer in expected]
    assert -1 not in places and places == sorted(places)
