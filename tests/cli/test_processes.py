"""Several processes under one parent: failures told, ends bounded, signals passed on, nobody left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import erniekit
from erniekit.cli import processes
from erniekit.errors import ConfigError
from erniekit.parallel.rendezvous import free_port
from erniekit.train.signals import AGAIN_SECONDS

# What each rank runs: a few lines instead of a training.
WORK = """
import os, signal, sys, time
rank, folder = int(os.environ["PADDLE_TRAINER_ID"]), sys.argv[1]
open(f"{folder}/pid-{rank}", "w").write(str(os.getpid()))
def save(number, frame):
    open(f"{folder}/saved-{rank}", "w").write("yes")
    sys.exit(128 + number)
"""
# What the parent runs: two or three ranks of it, as the command does.
PARENT = """
import os, sys
from pathlib import Path
from erniekit.cli.launch import rank_environments, this_node
from erniekit.cli.processes import Watch
from erniekit.log import set_up_logging
set_up_logging()
folder, size = Path(sys.argv[1]), int(sys.argv[2])
places = {
    rank: (environment, folder / "logs" / f"rank-{rank}.log" if rank else None)
    for rank, environment in rank_environments(this_node(), size).items()
}
sys.exit(Watch().run([sys.executable, str(folder / "work.py"), str(folder)], places))
"""


def start(folder: Path, work: str, size: int = 2, **environment: str) -> "subprocess.Popen[str]":
    (folder / "work.py").write_text(WORK + work, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(folder), str(size)],
        env={**os.environ, "PYTHONPATH": str(Path(erniekit.__file__).parent.parent), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(parent: "subprocess.Popen[str]", timeout: float = 60) -> str:
    try:
        return parent.communicate(timeout=timeout)[0]
    except subprocess.TimeoutExpired:
        parent.kill()
        raise


def pids(folder: Path, size: int, timeout: float = 30) -> list[int]:
    end = time.monotonic() + timeout
    paths = [folder / f"pid-{rank}" for rank in range(size)]
    while not all(path.is_file() and path.read_text() for path in paths):
        assert time.monotonic() < end, "the ranks did not start"
        time.sleep(0.02)
    return [int(path.read_text()) for path in paths]


def wait_for(*paths: Path, timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not all(path.is_file() for path in paths):
        assert time.monotonic() < end, f"{paths} did not come"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_all_end_well(tmp_path: Path) -> None:
    parent = start(tmp_path, "print('rank', rank, 'of', os.environ['PADDLE_TRAINERS_NUM'])", 3)
    said = finish(parent)
    assert parent.returncode == 0 and said == "rank 0 of 3\n"
    assert (tmp_path / "logs/rank-2.log").read_text() == "rank 2 of 3\n"


def test_the_first_failure_is_told_and_the_rest_ended(tmp_path: Path) -> None:
    """Rank 1 fails; rank 0 loses it, and ends with the code for that; rank 2 hangs and ignores SIGTERM."""
    work = """
if rank == 1:
    time.sleep(0.5)
    raise ValueError("the reason")
if rank == 0:
    time.sleep(0.2)
    sys.exit(76)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(300)
"""
    began = time.monotonic()
    parent = start(tmp_path, work, 3)
    said = finish(parent)
    assert parent.returncode == 1
    assert "rank 1 failed first (exit code 1)" in said and "rank-1.log" in said
    assert "Traceback (most recent call last)" in said and "ValueError: the reason" in said
    assert time.monotonic() - began < 40  # 10 s, and a busy machine
    assert not any(alive(pid) for pid in pids(tmp_path, 3))


def test_a_killed_rank_is_named(tmp_path: Path) -> None:
    parent = start(tmp_path, "time.sleep(300)")
    os.kill(pids(tmp_path, 2)[1], signal.SIGKILL)
    said = finish(parent)
    assert parent.returncode == 1 and "rank 1 failed first (ended by SIGKILL)" in said
    assert not any(alive(pid) for pid in pids(tmp_path, 2))


def test_wrong_input_keeps_its_exit_code_and_is_told_once(tmp_path: Path) -> None:
    """Every process finds it; rank 0, which has the terminal, is slower."""
    parent = start(tmp_path, "time.sleep(0.5 * (rank == 0)); print('no such file'); sys.exit(2)")
    said = finish(parent)
    assert parent.returncode == 2 and said == "no such file\n"


def test_wrong_input_that_one_rank_alone_finds(tmp_path: Path) -> None:
    parent = start(tmp_path, "print('no such file'); sys.exit(2) if rank else time.sleep(300)")
    said = finish(parent)
    assert parent.returncode == 2 and "rank 1 failed first (exit code 2)" in said


def test_a_second_signal_ends_ranks_that_hear_none(tmp_path: Path) -> None:
    work = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
open(f"{folder}/ready-{rank}", "w").write("yes")
time.sleep(300)
"""
    parent = start(tmp_path, work)
    wait_for(*(tmp_path / f"ready-{rank}" for rank in range(2)))
    parent.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    parent.send_signal(signal.SIGTERM)  # once more for the group of the process
    time.sleep(AGAIN_SECONDS + 0.5)
    assert parent.poll() is None
    parent.send_signal(signal.SIGTERM)
    finish(parent)
    assert parent.returncode == 143
    assert not any(alive(pid) for pid in pids(tmp_path, 2))


def test_a_signal_before_all_are_there_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rank that is being started does not hear it, and the next one is yet to come."""
    real, started = processes._start, []

    def start_one(*args: object) -> processes.Rank:
        started.append(real(*args))  # type: ignore[arg-type]
        if len(started) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return started[-1]

    monkeypatch.setattr(processes, "_start", start_one)
    sleep = [sys.executable, "-c", "import time; time.sleep(20)"]
    assert processes.Watch().run(sleep, {rank: (os.environ, None) for rank in range(2)}) == 143
    assert not any(alive(rank.process.pid) for rank in started)


def test_no_place_for_what_ranks_say(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    watch = processes.Watch()
    places = {rank: (os.environ, tmp_path / "file/logs/rank-1.log" if rank else None) for rank in range(2)}
    with pytest.raises(ConfigError, match="output_dir: .*/file cannot be written"):
        watch.run([sys.executable, "-c", "import time; time.sleep(20)"], places)
    assert not any(alive(rank.process.pid) for rank in watch.ranks)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_lets_every_rank_save(tmp_path: Path, number: int, code: int) -> None:
    work = """
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
open(f"{folder}/ready-{rank}", "w").write("yes")
time.sleep(300)
"""
    parent = start(tmp_path, work)
    wait_for(*(tmp_path / f"ready-{rank}" for rank in range(2)))
    parent.send_signal(number)
    finish(parent)
    assert parent.returncode == code
    assert all((tmp_path / f"saved-{rank}").is_file() for rank in range(2))


def test_ranks_end_with_their_parent(tmp_path: Path) -> None:
    work = """
from erniekit.cli.launch import end_with_parent
end_with_parent()
open(f"{folder}/ready-{rank}", "w").write("yes")
time.sleep(300)
"""
    parent = start(tmp_path, work)
    wait_for(*(tmp_path / f"ready-{rank}" for rank in range(2)))
    held = pids(tmp_path, 2)
    parent.kill()
    finish(parent)
    end = time.monotonic() + 10
    while any(alive(pid) for pid in held):
        assert time.monotonic() < end, "a rank outlived its parent"
        time.sleep(0.02)


MEET = """
import paddle
from erniekit.parallel import comm
mine = {"configuration": os.environ.get("OTHER", "same")}
world = comm.open_world(identity=mine, patience=float(os.environ["PATIENCE"]))
print("sum", float(comm.all_reduce(paddle.to_tensor(float(rank + 1)), world)))
"""


def machines(folder: Path, count: int, patience: str = "60", **other: str) -> list["subprocess.Popen[str]"]:
    """Parents that stand for machines, of `count` that are to come, with one rank each."""
    meeting = {"NNODES": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for number in range(2):
        more = {
            **meeting,
            "NODE_RANK": str(number),
            "OMP_NUM_THREADS": "1",
            "PATIENCE": patience,
            **(other if number else {}),
        }
        started.append(start(folder, "try:" + MEET.replace("\n", "\n    ") + TELL, 1, **more))
    return started


TELL = """
except Exception as error:
    print(error)
    sys.exit(getattr(error, "exit_code", 1))
"""


def test_machines_meet(tmp_path: Path) -> None:
    first, second = machines(tmp_path, 2)
    assert "sum 3.0" in finish(first) and first.returncode == 0
    finish(second)
    assert second.returncode == 0 and "sum 3.0" in (tmp_path / "logs/rank-1.log").read_text()


def test_a_machine_that_does_not_come_is_named(tmp_path: Path) -> None:
    first, second = machines(tmp_path, 3, patience="4")
    # Where the machine is busy, the second one may also come too late.
    told = finish(first)
    assert re.search("of 3 processes rank (1, )?2 did not come within 4 s", told)
    assert "rank 0 lost a process whose end was not seen on this machine" in told
    assert finish(second) and first.returncode == second.returncode == 1


def test_a_machine_with_another_configuration_is_named(tmp_path: Path) -> None:
    first, second = machines(tmp_path, 2, OTHER="changed")
    assert "rank 1 has another configuration than rank 0 (changed and same)" in finish(first)
    assert "rank 1 has another configuration" in finish(second)
    assert first.returncode == second.returncode == 2
