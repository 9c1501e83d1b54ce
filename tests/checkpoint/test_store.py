"""Checkpoints appear whole or not at all, whatever happens to the process or the disk."""

import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from erniekit.checkpoint.manifest import verify
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError

STATE = {"step": 0}


def save(store, step, **changes):
    items = [("w", "F32", np.full(50, step, np.float32))]
    fields = dict(
        model_items=items,
        optimizer_items=[("exp_avg.w", "F32", np.zeros(50, np.float32))],
        state={**STATE, "step": step},
        write_files=lambda folder: (folder / "config.json").write_text("{}"),
    )
    store.save(step, **{**fields, **changes})


def steps(store):
    return [checkpoint.step for checkpoint in store.list()]


def test_a_checkpoint_reads_back(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=None)
    assert store.latest() is None and store.newest_good() is None and store.list() == []
    save(store, 3)
    checkpoint = store.newest_good()
    assert checkpoint.step == 3 and checkpoint.state()["step"] == 3
    assert checkpoint.tensors("model").read("w").tolist() == [3.0] * 50
    assert checkpoint.tensors("optimizer").names() == ["exp_avg.w"]
    assert store.latest().step == 3 and store.best() is None


def test_retention_keeps_the_best_and_the_latest(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=2)
    save(store, 1)
    store.mark_best(1)
    for step in (2, 3, 4):
        save(store, step)
    assert steps(store) == [1, 4]
    store.mark_best(4)
    save(store, 5)
    assert steps(store) == [4, 5]


def test_a_limit_of_one_never_deletes_the_best(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=1)
    save(store, 1)
    store.mark_best(1)
    save(store, 2)
    assert steps(store) == [1, 2]


def test_asynchronous_saves_take_a_copy(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=None)
    array, go_on = np.zeros(50, np.float32), threading.Event()

    def slow(folder):
        go_on.wait(30)

    save(store, 1, model_items=[("w", "F32", array)], write_files=slow, asynchronous=True)
    array += 7  # training goes on
    assert steps(store) == []
    go_on.set()
    store.wait()
    assert store.newest_good().tensors("model").read("w").tolist() == [0.0] * 50


def test_an_asynchronous_error_comes_with_the_next_call(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=None)

    def fail(folder):
        raise OSError(28, "No space left on device")

    save(store, 1, write_files=fail, asynchronous=True)
    with pytest.raises(CheckpointError, match="the disk is full; there is no good checkpoint yet"):
        store.wait()
    store.wait()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_last_good_one_and_names_it(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=1)
    save(store, 1)

    def fail(folder):
        (folder / "half").write_bytes(b"x")
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"checkpoint-2 failed: the disk is full; .*checkpoint-1"):
        save(store, 2, write_files=fail)
    assert store.newest_good().step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "latest"]


def test_a_real_size_limit_of_the_system(tmp_path):
    """The kernel refuses to grow a file beyond the limit, in the middle of the tensors."""
    script = f"""
import resource, signal, numpy as np
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError
from tests.checkpoint.test_store import save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore({str(tmp_path)!r}, save_total_limit=1)
save(store, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(store, 2, model_items=[("w", "F32", np.zeros(100_000, np.float32))])
except CheckpointError as error:
    assert "exceed the allowed size" in str(error) and "checkpoint-1" in str(error), error
    raise SystemExit(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 7, done.stderr
    store = CheckpointStore(tmp_path, save_total_limit=1)
    assert store.newest_good().step == 1 and steps(store) == [1]


@pytest.mark.skipif(
    os.geteuid() != 0, reason="mounting a small disk needs root; the size limit above does not"
)
def test_a_really_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this system does not let a small disk be mounted")
    try:
        store = CheckpointStore(disk, save_total_limit=1)
        save(store, 1)
        with pytest.raises(CheckpointError, match="the disk is full"):
            save(store, 2, model_items=[("w", "F32", np.zeros(1_000_000, np.float32))])
        assert store.newest_good().step == 1
        save(store, 3)
        assert steps(store) == [3]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_killed_at_any_moment_of_a_save_the_newest_good_one_is_good(tmp_path):
    """A process saves on and on and is killed; what it leaves must verify, and be cleaned up."""
    script = f"""
import numpy as np, sys
from erniekit.checkpoint.store import CheckpointStore
from tests.checkpoint.test_store import save
store = CheckpointStore({str(tmp_path)!r}, save_total_limit=2)
first = max([c.step for c in store.list()], default=0) + 1
for step in range(first, first + 100000):
    save(store, step, model_items=[(f"w{{i}}", "F32", np.full(20000, step, np.float32)) for i in range(20)])
    print(step, flush=True)
"""
    last = 0
    for after in (1, 2, 5):
        process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        try:
            for _ in range(after):
                last = int(process.stdout.readline())
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
            process.stdout.close()
        store = CheckpointStore(tmp_path, save_total_limit=2)
        for checkpoint in store.list():
            verify(checkpoint.path)  # whatever has its name is whole
        newest = store.newest_good()
        assert newest.step >= last
        assert newest.tensors("model").read("w7")[0] == newest.step
        store.clean()
        assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


# Saves checkpoint-3 over and over in children of one process, each of which dies, or is refused by
# the system, at another one of the events that touch the disk; prints what became of each.
AT_EVERY_EVENT = """
import json, os, shutil, signal, sys
from pathlib import Path
from erniekit.checkpoint.store import CheckpointStore
from erniekit.errors import CheckpointError
from tests.checkpoint.test_store import save

place, kind = Path(sys.argv[1]), sys.argv[2]
EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "ctypes.dlsym"}
left = -1

def strike(event, arguments):
    global left
    if left < 0 or event not in EVENTS:
        return
    left -= 1
    if left < 0:
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif event != "ctypes.dlsym":
            raise OSError(28, "No space left on device")

sys.addaudithook(strike)
base = place / "base"
store = CheckpointStore(base, save_total_limit=2)
save(store, 1)
store.mark_best(1)
save(store, 2)
save(store, 3)  # will be written over
for number in range(1000):
    run = place / str(number)
    shutil.copytree(base, run)
    child = os.fork()
    if child == 0:
        left = number
        code = 0
        try:
            save(CheckpointStore(run, save_total_limit=1), 3 if kind == "kill" else 4)
        except CheckpointError as error:
            left = -1
            code = 3 if "the disk is full" in str(error) and "newest good checkpoint is" in str(error) else 4
        finished = left >= 0
        left = -1
        os._exit(9 if finished else code)
    _, status = os.waitpid(child, 0)
    print(json.dumps([number, -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)]))
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 9:
        break
"""


@pytest.mark.parametrize("kind", ["kill", "full"])
def test_at_every_event_of_a_save(tmp_path, kind):
    done = subprocess.run(
        [sys.executable, "-c", AT_EVERY_EVENT, str(tmp_path), kind],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(outcomes) > 20 and outcomes[-1][1] == 9, outcomes
    for number, code in outcomes:
        store = CheckpointStore(tmp_path / str(number), save_total_limit=1)
        # A refusal is told, with the newest good checkpoint; that of a mere deletion is a warning.
        assert code in ({-signal.SIGKILL, 9} if kind == "kill" else {0, 3, 9}), (number, code)
        store.clean()
        assert not [path for path in store.output_dir.iterdir() if path.name.startswith(".")], number
        for checkpoint in store.list():
            verify(checkpoint.path)
        assert store.best().step == 1
        # Until a write is complete, what was there before is there; then the new one is.
        allowed = {3} if kind == "kill" else {4} if code in (0, 9) else {3, 4}
        assert store.newest_good().step == store.latest().step
        assert store.latest().step in allowed, (number, code)
        save(store, 5)
        assert steps(store) == [1, 5], number
    if kind == "full":
        assert {code for _, code in outcomes} == {0, 3, 9}


def test_newest_is_what_was_written_last(tmp_path):
    store = CheckpointStore(tmp_path, save_total_limit=None)
    for step in (10, 20, 40):
        save(store, step)
    save(store, 30)  # of a run that went back to step 20
    assert steps(store) == [10, 20, 40, 30]
    assert store.newest_good().step == store.latest().step == 30
    limited = CheckpointStore(tmp_path, save_total_limit=2)
    save(limited, 35)
    assert steps(limited) == [30, 35]


def test_an_error_of_any_kind_in_the_thread_is_raised(tmp_path):
    store = CheckpointStore(tmp_path)

    def fail(folder):
        raise ValueError("not a disk's fault")

    save(store, 1, write_files=fail, asynchronous=True)
    with pytest.raises(ValueError, match="not a disk's fault"):
        save(store, 2)
    save(store, 3)
    assert steps(store) == [3]


def test_a_pointer_that_a_kill_left_behind_is_put_right(tmp_path):
    store = CheckpointStore(tmp_path)
    save(store, 1)
    before = (tmp_path / "latest").read_bytes()
    save(store, 2)
    (tmp_path / "latest").write_bytes(before)
    store.clean()
    assert (tmp_path / "latest").read_text() == "checkpoint-2\n"


def test_a_checkpoint_that_cannot_be_deleted_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    store = CheckpointStore(tmp_path, save_total_limit=1)
    save(store, 1)

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("erniekit.checkpoint.store.discard_folder", refuse)
    save(store, 2)
    assert store.latest().step == 2
    assert "checkpoint-1 cannot be deleted" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only disk needs a mount; only root can")
def test_a_read_only_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(options, capture_output=True, check=False).returncode:
        pytest.skip("this system does not let a small disk be mounted")
    try:
        store = CheckpointStore(disk, save_total_limit=1)
        save(store, 1)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(CheckpointError, match="the file system is read-only; .*checkpoint-1"):
            save(store, 2)
        with pytest.raises(CheckpointError, match="writing .*best failed: the file system is read-only"):
            store.mark_best(1)
        store.clean()  # nothing to put right
        assert store.newest_good().step == 1
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "no manifest", "grow"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, harm):
    store = CheckpointStore(tmp_path, save_total_limit=None)
    save(store, 1)
    save(store, 2)
    file = tmp_path / "checkpoint-2" / "optimizer.safetensors"
    data = bytearray(file.read_bytes())
    if harm == "flip":
        data[-1] ^= 4
    file.write_bytes(data[:-3] if harm == "cut" else data + b"x" if harm == "grow" else data)
    if harm == "remove":
        file.unlink()
    if harm == "no manifest":
        file = tmp_path / "checkpoint-2" / "manifest.json"
        file.unlink()
    with pytest.raises(CheckpointError, match=str(file)) as caught:
        store.open(tmp_path / "checkpoint-2")
    assert "the newest good checkpoint is" in str(caught.value) and "checkpoint-1" in str(caught.value)
    assert store.newest_good().step == 1


def test_other_folders_are_not_taken_for_checkpoints(tmp_path):
    (tmp_path / "checkpoint-abc").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    (tmp_path / "latest").write_text("../../etc\n")
    store = CheckpointStore(tmp_path, save_total_limit=None)
    assert store.list() == [] and store.latest() is None
    with pytest.raises(CheckpointError, match="not named checkpoint-<step>"):
        store.open(tmp_path / "checkpoint-abc")
