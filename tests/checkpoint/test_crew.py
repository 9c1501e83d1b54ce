"""Checkpoints that several processes write, with threads in their place."""

import errno
import threading

import numpy as np
import pytest

from erniekit.checkpoint import shared_files
from erniekit.checkpoint.crew import SharedTensors
from erniekit.checkpoint.manifest import verify
from erniekit.checkpoint.shared_files import Part
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError
from tests.checkpoint.crews import run_all

WHOLE = np.arange(12, dtype="<f4").reshape(4, 3)


def shares(member, value=0.0):
    """Rows of `w` for each of two, and a tensor that the second one alone has."""
    rows = slice(2 * member.index, 2 * member.index + 2)
    parts = [Part("w", (rows.start, 0), WHOLE[rows] + value)]
    specs = [(5, ("w", "F32", (4, 3)))]
    if member.index == 1:
        parts.append(Part("a", (), np.array(7.0, "<f4")))
        specs.append((2, ("a", "F32", ())))
    return [SharedTensors("model", {"format": "pt"}, specs, lambda: parts)]


def save(member, folder, step, value=0.0, **changes):
    store = CheckpointStore(folder, crew=member)
    fields = dict(
        tensors=shares(member, value),
        state={"step": step},
        write_files=lambda made: (made / "config.json").write_text("{}"),
    )
    store.save_shared(step, **{**fields, **changes})
    store.wait()
    return store


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_each_wrote_is_one_checkpoint(tmp_path, asynchronous):
    found = run_all(2, lambda member: save(member, tmp_path, 4, asynchronous=asynchronous))
    assert all(isinstance(store, CheckpointStore) for store in found), found
    checkpoint = CheckpointStore(tmp_path).newest_good()
    assert checkpoint.step == 4 and checkpoint.state() == {"step": 4}
    tensors = checkpoint.tensors("model")
    assert tensors.names() == ["a", "w"]  # by place, whoever holds them
    assert (tensors.read("w") == WHOLE).all() and tensors.read("a") == 7.0
    assert CheckpointStore(tmp_path).latest().step == 4


def test_a_process_that_cannot_write_fails_all_and_leaves_the_last_good_one(tmp_path, monkeypatch):
    run_all(2, lambda member: save(member, tmp_path, 1))
    real = shared_files._write_all

    def full(descriptor, content, offset):
        if threading.current_thread() is full.second:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor, content, offset)

    def work(member):
        if member.index == 1:
            full.second = threading.current_thread()
        member.gather(None)
        return save(member, tmp_path, 2, value=1.0)

    monkeypatch.setattr(shared_files, "_write_all", full)
    for error in run_all(2, work):
        assert isinstance(error, CheckpointError)
        assert "the disk is full" in str(error) and "checkpoint-1" in str(error)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["checkpoint-1", "latest"]
    verify(tmp_path / "checkpoint-1")


def test_an_error_of_the_first_one_at_the_end_is_heard_by_all(tmp_path):
    def broken(folder):
        raise OSError(errno.EIO, "broken")

    for error in run_all(2, lambda member: save(member, tmp_path, 2, write_files=broken)):
        assert isinstance(error, CheckpointError) and "input/output error" in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_heard_by_all(tmp_path):
    (tmp_path / "file").write_text("")
    for error in run_all(2, lambda member: save(member, tmp_path / "file" / "run", 2)):
        assert isinstance(error, CheckpointError)
