"""What a run of several processes survives: ranks killed at every moment of a save and in a step, a rank that
hangs, a full disk, a damaged file; nothing that was saved is lost, and nobody is left behind.

A rank is struck from within, at an event of the interpreter: FAULT is `rank|event|pattern`, and the pattern
is looked for in what the event is about. Python imports `sitecustomize` on its own, so the command under
test is the user's.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from erniekit.checkpoint.manifest import verify
from erniekit.checkpoint.store import CheckpointStore
from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import command, run_erniekit, write_run
from tests.house.sources import ROOT

pytestmark = pytest.mark.slow

STRIKE = """
import os, re, signal, sys, time
rank, fault = os.environ.get("PADDLE_TRAINER_ID"), os.environ.get("FAULT", "")
if rank is not None and fault.startswith(f"{rank}|"):
    _, wanted, pattern = fault.split("|")
    def strike(event, arguments):
        if event == wanted and re.search(pattern, repr(arguments)):
            os.kill(os.getpid(), signal.SIGKILL)
    if wanted == "full":
        def refuse(*arguments):
            raise OSError(28, "No space left on device")
        os.pwrite = refuse
    sys.addaudithook(strike)
log = os.environ.get("LATE_WRITES")
if rank is not None and log:
    write = os.pwrite
    def late(*arguments):
        time.sleep(0.02)
        return write(*arguments)
    os.pwrite = late
    def note(event, arguments):
        if event == "os.rename" and ".checkpoint-" in str(arguments[0]):
            with open(log) as file, open(f"{log}.{os.path.basename(arguments[1])}", "w") as told:
                told.write(str(sum('"loss"' in line for line in file)))
    sys.addaudithook(note)
"""
PLAN = ("nproc_per_node=2", "expert_parallel_degree=2", "moe_group=dp")


@pytest.fixture(scope="module")
def struck(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module that strikes and a configuration."""
    folder = tmp_path_factory.mktemp("struck")
    (folder / "sitecustomize.py").write_text(STRIKE, encoding="utf-8")
    keys = {"max_steps": 40, "save_steps": 4, "evaluation_strategy": "no", "compute_type": "fp32"}
    write_run(folder, tiny_moe_config(), gradient_accumulation_steps=1, **keys)
    return folder


def environment(folder: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, **more}


def train(folder: Path, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
    """The command to its end; what is left of it is an error."""
    done = run_erniekit(
        "train", str(folder / "run.yaml"), *PLAN, *words, timeout=300, **environment(folder, **more)
    )
    return done


def begin(folder: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command("train", str(folder / "run.yaml"), *PLAN, *words),
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ranks_of(parent: int) -> dict[int, int]:
    """Rank -> process id, of the children of a process."""
    found = {}
    for word in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        variables = Path(f"/proc/{word}/environ").read_bytes()
        number = re.search(rb"PADDLE_TRAINER_ID=(\d+)", variables)
        if number:
            found[int(number[1])] = int(word)
    return found


def wait_for_step(log: Path, step: int, parent: "subprocess.Popen[str]", timeout: float = 120) -> None:
    end = time.monotonic() + timeout
    while not (log.is_file() and f'"step": {step},' in log.read_text()):
        assert parent.poll() is None, parent.communicate()[0]
        assert time.monotonic() < end, f"step {step} did not come"
        time.sleep(0.01)


def gone(pids: list[int]) -> bool:
    """Whether no process of these is there (one that only waits to be counted is not)."""
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state != "Z":
            return False
    return True


# Where a rank is struck, and the step of the newest good checkpoint afterwards, from which the next goes on.
AT_WORK = r"checkpoint-{step}\.writing-\d+"
MOMENTS = (
    ("1|import|'paddle'", 0),
    ("1|open|" + AT_WORK.format(step=4), 0),
    ("1|full|", 0),
    ("0|open|" + AT_WORK.format(step=4) + "/optimizer", 0),
    ("0|os.rename|" + AT_WORK.format(step=8), 4),
    ("0|open|" + AT_WORK.format(step=8) + "/manifest", 4),
    ("0|open|latest.writing", 8),
)


def logged(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(struck: Path) -> Path:
    """The folder of a run that nothing happened to."""
    done = train(struck, f"output_dir={struck}/undisturbed")
    assert done.returncode == 0, done.stderr
    return struck / "undisturbed"


def test_struck_at_every_moment_a_run_ends_as_if_nothing_had_happened(
    struck: Path, undisturbed: Path
) -> None:
    out = struck / "out"
    store = CheckpointStore(out)
    for number, (fault, good) in enumerate(MOMENTS):
        began = time.monotonic()
        # Every other save is in the background, and so are its faults.
        done = train(struck, f"use_async_save={'true' if number % 2 else 'false'}", FAULT=fault)
        assert done.returncode == 1, (fault, done.stderr)
        if "full" in fault:
            assert "the disk is full" in done.stderr and "no good checkpoint yet" in done.stderr
        else:
            assert f"rank {fault[0]} failed first (ended by SIGKILL)" in done.stderr, fault
        for checkpoint in store.list():
            verify(checkpoint.path)  # whatever has its name is whole
        newest = store.newest_good()
        assert (newest.step if newest else 0) == good, fault
        assert time.monotonic() - began < 120
    killed_in_a_step(struck, out)
    told_to_stop(struck, out)
    done = train(struck)
    assert done.returncode == 0, done.stderr
    for name in ("train_log.jsonl", "checkpoint-40/model.safetensors", "checkpoint-40/optimizer.safetensors"):
        assert (out / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


def killed_in_a_step(folder: Path, out: Path) -> None:
    parent = begin(folder)
    wait_for_step(out / "train_log.jsonl", 13, parent)
    pids = ranks_of(parent.pid)
    assert sorted(pids) == [0, 1]
    os.kill(pids[1], signal.SIGKILL)
    killed = time.monotonic()
    said = parent.communicate(timeout=60)[0]
    assert parent.returncode == 1 and "rank 1 failed first (ended by SIGKILL)" in said
    assert "defect of ErnieKit" not in said
    assert time.monotonic() - killed < 20  # 10 s, and a busy machine
    assert gone([*pids.values()])


def told_to_stop(folder: Path, out: Path) -> None:
    parent = begin(folder)
    wait_for_step(out / "train_log.jsonl", 18, parent)
    pids = ranks_of(parent.pid)
    parent.send_signal(signal.SIGTERM)
    said = parent.communicate(timeout=60)[0]
    assert parent.returncode == 143, said
    newest = CheckpointStore(out).newest_good()
    assert newest is not None and f"stopped at step {newest.step}; start again to continue" in said
    assert gone([*pids.values()])


def test_a_rank_that_hangs_is_named(struck: Path) -> None:
    out = struck / "hung"
    parent = begin(struck, f"output_dir={out}", "max_steps=100000", "save_steps=100000", "ddp_timeout=4")
    wait_for_step(out / "train_log.jsonl", 3, parent)
    pids = ranks_of(parent.pid)
    os.kill(pids[1], signal.SIGSTOP)
    stopped = time.monotonic()
    said = parent.communicate(timeout=90)[0]
    assert parent.returncode == 1 and "rank 0 has waited for rank 1 for 4 s without an answer" in said
    assert time.monotonic() - stopped < 4 + 30  # 4 s for an answer, 10 s to end, and a busy machine
    assert gone([*pids.values()])


def test_a_damaged_part_is_told_and_an_older_checkpoint_goes_on_under_another_plan(
    struck: Path, undisturbed: Path
) -> None:
    file = undisturbed / "checkpoint-40/optimizer.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # in the part of the last rank
    before = logged(undisturbed)
    out = struck / "damaged"
    shutil.copytree(undisturbed, out)
    (out / "checkpoint-40/optimizer.safetensors").write_bytes(content)
    done = train(
        struck,
        *(f"output_dir={out}", "expert_parallel_degree=1", "moe_group=mp", "tensor_parallel_degree=2"),
        "gradient_accumulation_steps=2",
    )
    assert done.returncode == 0, done.stderr
    assert "optimizer.safetensors is damaged: its content is not what was written" in done.stderr
    assert "continuing from" in done.stderr and "checkpoint-36 (step 36)" in done.stderr
    after = logged(out)
    assert [row["step"] for row in after] == [row["step"] for row in before]
    for ours, theirs in zip(after, before, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


def test_a_save_in_the_background_overlaps_with_training(struck: Path) -> None:
    out = struck / "overlapped"
    log = out / "train_log.jsonl"
    done = train(
        struck,
        *(f"output_dir={out}", "max_steps=24", "save_steps=12", "use_async_save=true"),
        LATE_WRITES=str(log),
    )
    assert done.returncode == 0, done.stderr
    # Steps in the log when the checkpoint of step 12 got its name.
    assert int(Path(f"{log}.checkpoint-12").read_text()) > 13
    verify(out / "checkpoint-12")
    verify(out / "checkpoint-24")
