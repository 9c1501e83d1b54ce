"""The only place that writes the process environment, before Paddle is imported; and what it says of a run.

A run of several processes is started in one of three ways: this process starts those of this machine
itself (`nproc_per_node`), on each of NNODES machines where there are several (MASTER_ADDR, MASTER_PORT and
NODE_RANK say which one this is; under Slurm with one task a machine its own variables do), or
`python -m paddle.distributed.launch` has started every process, with PADDLE_TRAINER_ID and its like.

Three settings are worth a factor of two and more on CPUs (measured on Paddle 3.3.1):

* glibc returns every large tensor to the kernel when it is freed, so that the next one starts
  with page faults; three `mallopt` parameters keep the memory in the process.
* Paddle's wheel carries an Intel MKL that takes its slowest path on AMD processors unless
  `MKL_DEBUG_CPU_TYPE=5` is set. The last bits of a matrix product change with it, so every
  process of a run has to set it alike: it is set here or by the user, nowhere else.
* Paddle sets `OMP_NUM_THREADS` to 1 when it is missing: one core computes and the others wait.
  The last bits depend on the number of threads too; a run that is to be continued bit by bit on a
  machine with another number of cores needs the variable set to what it was.
"""

import contextlib
import ctypes
import io
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from erniekit.errors import ConfigError, PeerError, UnsupportedError
from erniekit.estimate.hardware import usable_cores
from erniekit.log import LOG_VARIABLE

# glibc's malloc.h: parameter number -> value in bytes.
_MALLOPT = {-3: 2_000_000_000, -1: 2_147_483_647, -2: 67_108_864}  # MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD

_NODE_RANKS = ("NODE_RANK", "PADDLE_NODE_RANK", "SLURM_NODEID", "RANK")
_PARENT = "ERNIEKIT_PARENT"
_NAME_SECONDS = 300.0
_PR_SET_PDEATHSIG = 1


def prepare_environment() -> None:
    """Set allocation, math library, threads and warning filters; safe to call more than once."""
    if _is_amd():
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, int(usable_cores()))))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            for parameter, value in _MALLOPT.items():
                libc.mallopt(parameter, value)
    warnings.filterwarnings("ignore", message="No ccache found")


@dataclass(frozen=True)
class Node:
    """This machine among those of a run; `master` is host:port of rank 0."""

    number: int
    count: int
    master: str


def is_rank() -> bool:
    """Whether somebody has started this process as one of several."""
    return "PADDLE_TRAINER_ID" in os.environ


def has_parent() -> bool:
    """Whether this process is a rank that `start_ranks` of another one has started."""
    return _PARENT in os.environ


def num_processes() -> int:
    """Processes of the run that this one is in."""
    return int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))


def processes_here(nproc_per_node: int, device: str) -> int:
    """Processes for this machine: as asked, or one for each GPU that may be seen, or one."""
    if nproc_per_node > 0:
        return nproc_per_node
    if device not in ("auto", "gpu"):
        return 1
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if seen is not None:
        return max(1, len([word for word in seen.split(",") if word.strip() not in ("", "-1")]))
    return max(1, len(list(Path("/dev").glob("nvidia[0-9]*"))))


def this_node() -> Node:
    """This machine, by the environment.

    Raises:
        ConfigError: several machines without an address to meet at, or a number that none of them has.
    """
    given = os.environ
    count = _number_of("NNODES", "SLURM_STEP_NUM_NODES", otherwise=1)
    number = _number_of(*_NODE_RANKS, otherwise=0) if count > 1 else 0
    host, port = given.get("MASTER_ADDR"), _number_of("MASTER_PORT", otherwise=0) if count > 1 else 0
    if count > 1 and not (host and port):
        raise ConfigError(
            f"the run is on {count} machines (NNODES), and MASTER_ADDR and MASTER_PORT do not say where they "
            "meet: set both alike on all machines, to the address of the first and a free port of it. Under "
            "Slurm: MASTER_ADDR=$(scontrol show hostnames $SLURM_JOB_NODELIST | head -n 1)"
        )
    tasks = _number_of("SLURM_STEP_NUM_TASKS", otherwise=count)
    if "NNODES" not in given and tasks > count:
        raise ConfigError(
            f"Slurm starts {tasks} tasks on {count} machines, and one on each machine starts the others: "
            "write --ntasks-per-node=1, and nproc_per_node for the processes of a machine"
        )
    if not 0 <= number < count:
        raise ConfigError(f"NODE_RANK is {number}, and there are {count} machines (NNODES): it begins at 0")
    if count == 1:
        return Node(0, 1, f"127.0.0.1:{_free_port()}")
    return Node(number, count, f"{host}:{port}")


def _number_of(*names: str, otherwise: int) -> int:
    """Of the first of some variables that is set."""
    for name in names:
        if text := os.environ.get(name):
            if not text.isdecimal():
                raise ConfigError(f"{name}={text} (environment): write a whole number")
            return int(text)
    return otherwise


def rank_environments(node: Node, here: int) -> dict[int, dict[str, str]]:
    """Rank -> environment, for every process of this machine."""
    host, _, port = node.master.rpartition(":")
    own = host if node.number == 0 else _own_address(host)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, int(usable_cores()) // here))
    return {
        node.number * here + local: {
            **os.environ,
            "OMP_NUM_THREADS": threads,
            "PADDLE_TRAINER_ID": str(node.number * here + local),
            "PADDLE_TRAINERS_NUM": str(node.count * here),
            "PADDLE_LOCAL_RANK": str(local),
            "PADDLE_MASTER": node.master,
            "MASTER_ADDR": host,
            "MASTER_PORT": port,
            "PADDLE_CURRENT_ENDPOINT": f"{own}:{int(port) + 1 + local}",
            "FLAGS_selected_gpus": str(local),
            "GLOG_minloglevel": os.environ.get("GLOG_minloglevel", "1"),  # not how the store connects
            _PARENT: str(os.getpid()),
        }
        for local in range(here)
    }


def end_with_parent() -> None:
    """Let the kernel end this process when the one that started it as a rank is gone, however it ended."""
    parent = os.environ.get(_PARENT)
    if parent is None or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != int(parent):  # it has gone already
        sys.exit(PeerError.exit_code)


def start_ranks(words: Sequence[str], *, nproc_per_node: int, device: str, output_dir: str) -> int | None:
    """Start the processes of a run when there are to be several; None when this one is to do the work.

    Args:
        words: the command line for each of them, after the program's name.

    Returns:
        exit code of the run, see `processes.Watch`.
    """
    if is_rank():
        end_with_parent()
        return None
    here, node = processes_here(nproc_per_node, device), this_node()
    if here * node.count == 1:
        return None
    from erniekit.cli.processes import Watch

    logs = Path(output_dir) / "logs"
    places: dict[int, tuple[dict[str, str], Path | None]] = {}
    for rank, environment in rank_environments(node, here).items():
        log = logs / f"rank-{rank}.log"
        if rank == 0:
            environment[LOG_VARIABLE] = str(log.resolve())  # besides the terminal
        places[rank] = (environment, log if rank else None)
    return Watch().run([sys.executable, "-m", "erniekit", *words], places)


def _own_address(master: str) -> str:
    """The address of this machine on the way to another, whose name may come to be known a little later."""
    end = time.monotonic() + _NAME_SECONDS
    while True:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((master, 9))  # sends nothing
                return str(probe.getsockname()[0])
        except OSError as error:
            if time.monotonic() > end:
                raise ConfigError(
                    f"MASTER_ADDR: {master} cannot be found from this machine ({error}); write the name or "
                    "the address of the first machine"
                ) from error
            time.sleep(min(1.0, _NAME_SECONDS))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_paddle() -> None:
    """Prepare the environment and make sure that Paddle can be imported.

    Raises:
        UnsupportedError: Paddle is not installed; names the extra to install.
    """
    prepare_environment()
    if find_spec("paddle") is None:
        raise UnsupportedError(
            "this command needs PaddlePaddle, which is not installed. On a CPU: "
            "pip install 'erniekit[cpu]'. On a GPU: install paddlepaddle-gpu 3.3.x from Paddle's own "
            "package index (see docs/getting-started.md)."
        )
    _import_paddle()


def _import_paddle() -> None:
    """Import Paddle without its remark on the number of threads, which is meant for data parallelism."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        import paddle  # noqa: F401
    for line in said.getvalue().splitlines():
        if "OMP_NUM_THREADS" not in line:
            sys.stderr.write(f"{line}\n")
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Paddle has set one that prints its own stack


def _is_amd() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return False
    with cpuinfo.open(encoding="utf-8", errors="replace") as file:
        return any("AuthenticAMD" in line for line in file if line.startswith("vendor_id"))
