"""Functions run by several real processes at once, with a bounded wait and nothing left behind."""

import faulthandler
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from erniekit.parallel.rendezvous import free_port

_STARTER = "import sys; from erniekit.testing.distributed import main; sys.exit(main())"


class WorkerError(AssertionError):
    """A process of a distributed function failed; holds its rank and what it said."""


def run_distributed(
    function: str, nproc: int, *arguments: Any, timeout: float = 120, **environment: str
) -> list[Any]:
    """Run `module:name` in `nproc` processes, as `name(*arguments)`; returns what each of them gives.

    The function calls `erniekit.parallel.comm.open_world()` itself. One thread a process; the kernels are
    Paddle's unless ERNIEKIT_KERNELS says otherwise.

    Args:
        arguments: anything that can be pickled, the same for all.
        timeout: seconds for everything, after which all processes are ended.
        environment: more variables.

    Raises:
        WorkerError: a process failed or hung: the traceback of the first that failed, or who did not end.
    """
    with tempfile.TemporaryDirectory(prefix="erniekit-processes-") as name:
        folder = Path(name)
        (folder / "call").write_bytes(pickle.dumps((function, arguments)))
        processes = [_start(folder, rank, nproc, environment) for rank in _places(folder, nproc)]
        try:
            _wait(processes, folder, timeout)
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.wait()
        return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(nproc)]


def _places(folder: Path, nproc: int) -> range:
    (folder / "port").write_text(str(free_port()), encoding="ascii")
    return range(nproc)


def _start(folder: Path, rank: int, nproc: int, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    settings = {
        "OMP_NUM_THREADS": "1",
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_TRAINERS_NUM": str(nproc),
        "PADDLE_MASTER": f"127.0.0.1:{(folder / 'port').read_text(encoding='ascii')}",
        "PADDLE_CURRENT_ENDPOINT": f"127.0.0.1:{rank}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    with (folder / f"log-{rank}").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-c", _STARTER, str(folder), str(rank)],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **settings, **environment},
        )


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    running = dict(enumerate(processes))
    while running:
        for rank, process in list(running.items()):
            code = process.poll()
            if code is None:
                continue
            del running[rank]
            if code:
                time.sleep(0.3)  # the cause may be elsewhere, and only a moment later
                raise WorkerError(_told(processes, folder))
        if running and time.monotonic() > end:
            for rank in running:
                processes[rank].send_signal(signal.SIGUSR1)  # each tells where it is
            time.sleep(0.5)
            logs = "\n".join(_log(folder, rank) for rank in running)
            raise WorkerError(f"rank {', '.join(map(str, running))} did not end within {timeout:g} s\n{logs}")
        time.sleep(0.01)


def _told(processes: list[subprocess.Popen[bytes]], folder: Path) -> str:
    """What the failed process said; one that only lost its peers is no cause where there is another."""
    from erniekit.errors import PeerError

    failed = [(rank, process.poll()) for rank, process in enumerate(processes) if process.poll()]
    causes = [item for item in failed if item[1] != PeerError.exit_code] or failed
    return "\n".join(f"rank {rank} ended with {code}\n{_log(folder, rank)}" for rank, code in causes)


def _log(folder: Path, rank: int) -> str:
    text = (folder / f"log-{rank}").read_text(encoding="utf-8", errors="replace")
    return f"--- rank {rank} ---\n{text[-4000:]}"


def main() -> int:
    """What each process runs: the folder with the call and the rank are on its command line."""
    from erniekit.errors import PeerError

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)
    folder, rank = Path(sys.argv[1]), sys.argv[2]
    function, arguments = pickle.loads((folder / "call").read_bytes())
    module, _, name = function.partition(":")
    try:
        result = getattr(importlib.import_module(module), name)(*arguments)
    except PeerError:
        import traceback

        traceback.print_exc()
        return PeerError.exit_code
    part = folder / f"part-{rank}"
    part.write_bytes(pickle.dumps(result))
    part.rename(folder / f"result-{rank}")
    return 0
