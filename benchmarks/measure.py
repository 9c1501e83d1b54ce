"""What all benchmarks share: the work, its timing, peak memory, the machine, workers as processes.

Imports only the standard library, because a peer's interpreter has nothing of ErnieKit.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULT = "RESULT "
HERE = Path(__file__).parent
# What `cli/launch.py` does for ErnieKit by mallopt, for a process that does not call it.
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "67108864",
}


@dataclass(frozen=True)
class Work:
    """What is timed: `batch` sequences of `length` tokens, `steps` times after `warm_up` steps."""

    folder: str
    batch: int
    length: int
    steps: int = 2
    warm_up: int = 2

    def words(self) -> list[str]:
        """The same as one argument of a worker."""
        return ["--work", json.dumps(asdict(self))]


def token_rows(vocab_size: int, work: Work) -> list[list[int]]:
    """The same tokens on all sides, without any side's generator: [B][T]."""
    return [
        [(7919 * (row * work.length + column) + 104729) % vocab_size for column in range(work.length)]
        for row in range(work.batch)
    ]


def timed(step: Callable[[], float], work: Work, name: str) -> dict[str, Any]:
    """Run the steps of a work; losses of all, seconds of those after the warm-up, and the peak memory."""
    losses, seconds = [], []
    for index in range(work.warm_up + work.steps):
        started = time.perf_counter()
        losses.append(step())
        if index >= work.warm_up:
            seconds.append(time.perf_counter() - started)
    return {"name": name, "losses": losses, "seconds": seconds, "peak_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """Largest resident size of this process so far, as Linux counts it (VmHWM)."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no VmHWM")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> dict[str, Any]:
    """Processor, cores, vector instructions, system, and how busy it is."""
    model, flags = platform.machine(), set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            model = value.strip()
        elif name.strip() == "flags":
            flags = set(value.split())
            break
    matter = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
    return {
        "processor": model,
        "cores": usable_cores(),
        "instruction_sets": [flag for flag in matter if flag in flags],
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


class WorkerError(Exception):
    """A worker gave no result; holds the end of what it said."""


def run_worker(
    python: str, script: str, words: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The result that a script of this folder says in a process of its own.

    Raises:
        WorkerError: it ended without one.
    """
    command = [python, str(HERE / script), *words]
    variables = {**os.environ, "PYTHONPATH": str(HERE.parent), **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            result: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return result
    raise WorkerError(f"{script} {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}")


def tell_result(result: dict[str, Any]) -> None:
    """Say a worker's result."""
    say(RESULT + json.dumps(result))


def say(text: str) -> None:
    """A line on standard output, at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first is the heading."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
