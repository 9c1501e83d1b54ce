"""Checkpoints that several processes write, with threads in their place."""

import errno
import json
import signal
import subprocess
import sys
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


def test_a_defect_of_one_is_heard_by_all_and_keeps_its_traceback(tmp_path):
    def work(member):
        held = shares(member)
        if member.index == 1:
            held = [SharedTensors("model", {}, held[0].specs, lambda: [Part("unknown", (), WHOLE)])]
        return save(member, tmp_path, 2, tensors=held)

    first, second = run_all(2, work)
    assert isinstance(first, CheckpointError) and "KeyError: 'unknown'" in str(first)
    assert isinstance(second, KeyError)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_heard_by_all(tmp_path):
    (tmp_path / "file").write_text("")
    for error in run_all(2, lambda member: save(member, tmp_path / "file" / "run", 2)):
        assert isinstance(error, CheckpointError)


# Two processes save checkpoint-2 over and over, in children of one process: in each turn one of them dies, or
# is refused by the system, at another one of the events that touch the disk; prints what became of both.
AT_EVERY_EVENT = """
import json, os, pickle, signal, socket, struct, sys
from pathlib import Path
from erniekit.checkpoint import shared_files
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError, PeerError
from tests.checkpoint.test_crew import save

place, victim, kind = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "write", "room"}
left = -1

class Member:
    def __init__(self, index, link):
        self.index, self.is_first, self.link = index, index == 0, link

    def gather(self, value):
        data = pickle.dumps(value)
        try:
            self.link.sendall(struct.pack("<q", len(data)) + data)
            other = pickle.loads(self.take(struct.unpack("<q", self.take(8))[0]))
        except OSError as error:
            raise PeerError("the other has ended") from error
        return [value, other] if self.is_first else [other, value]

    def take(self, size):
        data = b""
        while len(data) < size:
            piece = self.link.recv(size - len(data))
            if not piece:
                raise ConnectionError
            data += piece
        return data

def strike(event, arguments):
    global left
    if left < 0 or event not in EVENTS:
        return
    left -= 1
    if left < 0:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(28, "No space left on device")

def struck(name, function):  # these two have no events of their own
    def work(*arguments):
        strike(name, arguments)
        return function(*arguments)
    return work

os.pwrite, os.posix_fallocate = struck("write", os.pwrite), struck("room", os.posix_fallocate)
sys.addaudithook(strike)

def pair(folder, step, number=-1):
    global left
    ends, children = socket.socketpair(), []
    for index in (0, 1):
        child = os.fork()
        if child == 0:
            ends[1 - index].close()
            code = 0
            left = number if index == victim else -1
            armed = left >= 0
            try:
                save(Member(index, ends[index]), folder, step, float(step))
            except CheckpointError as error:
                code = 3 if "the disk is full; the newest good checkpoint is" in str(error) else 4
            except PeerError:
                code = 76
            os._exit(9 if armed and left >= 0 else code)
        children.append(child)
    for end in ends:
        end.close()
    codes = [os.waitpid(child, 0)[1] for child in children]
    return [-os.WTERMSIG(code) if os.WIFSIGNALED(code) else os.WEXITSTATUS(code) for code in codes]

for number in range(200):
    run = place / str(number)
    assert pair(run, 1) == [0, 0]
    codes = pair(run, 2, number)
    store = CheckpointStore(run)
    kept = [checkpoint.step for checkpoint in store.list()], store.newest_good().step
    store.clean()
    assert not [path for path in run.iterdir() if path.name.startswith(".")], number
    assert store.latest().step == store.newest_good().step
    assert pair(run, 3) == [0, 0]
    print(json.dumps([codes, kept, CheckpointStore(run).newest_good().step]))
    if codes[victim] == 9:
        break
"""


@pytest.mark.parametrize("kind", ["kill", "full"])
@pytest.mark.parametrize("victim", [0, 1])
def test_at_every_event_of_a_save(tmp_path, victim, kind):
    done = subprocess.run(
        [sys.executable, "-c", AT_EVERY_EVENT, str(tmp_path), str(victim), kind],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) > (20, 3)[victim] and outcomes[-1][0][victim] == 9, outcomes
    for codes, (steps, newest), after in outcomes:
        # Whatever has its name is whole, and the one before is never lost.
        assert 1 in steps and newest == steps[-1] and after == 3
        if codes[victim] == 9:
            assert newest == 2
        elif kind == "kill":
            # The other one hears of it, unless it had nothing more to wait for.
            assert codes[victim] == -signal.SIGKILL and codes[1 - victim] in (76, 0)
            assert newest == 2 or codes[1 - victim] == 76
        else:
            # What only reads may be done without; what comes after the new name is told by one of them.
            assert codes in ([3, 3], [3, 0], [0, 0]) and (newest == 2 or codes == [3, 3]), codes
    if kind == "full":
        assert [3, 3] in [codes for codes, _, _ in outcomes]
