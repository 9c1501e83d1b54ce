import os
import subprocess
import sys

import pytest

from erniekit.checkpoint import atomic
from erniekit.checkpoint.atomic import clean_leftovers, write_file_atomic, write_folder
from erniekit.errors import CheckpointError


def test_a_folder_has_its_name_only_when_it_is_complete(tmp_path):
    target = tmp_path / "a" / "model"
    with write_folder(target) as folder:
        (folder / "x").write_text("1")
        assert not target.exists()
    assert (target / "x").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_an_error_leaves_nothing_and_the_old_folder_stays(tmp_path):
    target = tmp_path / "model"
    with write_folder(target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), write_folder(target, overwrite=True) as folder:
        (folder / "x").write_text("new")
        raise ZeroDivisionError
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(CheckpointError, match="exists already"), write_folder(target):
        pass
    with write_folder(target, overwrite=True) as folder:
        (folder / "y").write_text("new")
    assert [path.name for path in target.iterdir()] == ["y"]


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "f"
    write_file_atomic(path, b"one")
    write_file_atomic(path, b"two")
    assert path.read_bytes() == b"two" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(CheckpointError, match="writing .* failed"):
        write_file_atomic(tmp_path / "no" / "f", b"x")


def test_only_what_nobody_is_writing_is_cleaned(tmp_path):
    names = [".checkpoint-1.writing-abc", ".checkpoint-1.writing", "checkpoint-1.writing-5", ".hidden"]
    for name in names:
        (tmp_path / name).mkdir()
    with write_folder(tmp_path / "ours"):
        assert clean_leftovers(tmp_path) == []
    other = subprocess.Popen(
        [sys.executable, "-c", WRITE_UNTIL_TOLD, str(tmp_path / "theirs")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        other.stdout.readline()
        assert clean_leftovers(tmp_path) == []
        assert len(list(tmp_path.glob(".theirs.*"))) == 1
    finally:
        other.kill()
        other.wait(30)
        other.stdout.close()
        other.stdin.close()
    assert [path.name.split("-")[0] for path in clean_leftovers(tmp_path)] == [".theirs.writing"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, "ours"])


WRITE_UNTIL_TOLD = """
import sys
from pathlib import Path
from erniekit.checkpoint.atomic import write_folder
with write_folder(Path(sys.argv[1])):
    print(flush=True)
    sys.stdin.read()
"""


def test_a_reused_process_id_protects_nothing(tmp_path):
    left = tmp_path / f".checkpoint-1.writing-{os.getppid()}"  # alive, but not ours
    left.mkdir()
    assert clean_leftovers(tmp_path) == [left]


def test_between_two_renames_the_old_folder_comes_back(tmp_path):
    old = tmp_path / ".model.old.writing-999999999"
    old.mkdir()
    (old / "x").write_text("old")
    assert clean_leftovers(tmp_path) == []
    assert (tmp_path / "model" / "x").read_text() == "old"


def test_overwriting_without_exchange(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    for text in ("old", "new"):
        with write_folder(tmp_path / "model", overwrite=True) as folder:
            (folder / "x").write_text(text)
    assert (tmp_path / "model" / "x").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_file_at_fault_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"model failed: No such file .*\(.*tokenizer\.json\)"):
        with write_folder(tmp_path / "model") as folder:
            (folder / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes())
    (tmp_path / "file").touch()
    with (
        pytest.raises(CheckpointError, match="writing .*/file/model failed"),
        write_folder(tmp_path / "file" / "model"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
