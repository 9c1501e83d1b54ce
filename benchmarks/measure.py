"""What all benchmarks share: the work, its timing, peak memory, the machine, workers as processes.

Imports only the standard library, because a peer's interpreter has nothing of ErnieKit. Benchmarks of a
step run each mode of each side in a process of its own, in turns for several rounds, so that a machine
that slows down slows all; a mode that takes over 1.5 times as long as the best of its side is run once.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RESULT = "RESULT "
HERE = Path(__file__).parent
WORTH_REPEATING = 1.5
# Relative difference of first losses: of fp32, and of bf16, which rounds differently on each side.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-3}
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


@dataclass
class Measured:
    """All runs of one mode."""

    results: list[dict[str, Any]] = field(default_factory=list)

    def seconds(self) -> float:
        """Median of all timed steps of all rounds."""
        return statistics.median(second for result in self.results for second in result["seconds"])

    def spread(self) -> tuple[float, float]:
        """Fastest and slowest step."""
        every = [second for result in self.results for second in result["seconds"]]
        return min(every), max(every)

    def peak(self) -> float:
        """Peak memory in 10^9 bytes, the largest of the rounds."""
        return max(result["peak_rss_bytes"] for result in self.results) / 1e9

    def loss(self) -> float:
        """The loss of the first step."""
        return float(self.results[0]["losses"][0])


def add(
    modes: dict[str, Measured],
    mode: str,
    python: str,
    script: str,
    words: Sequence[str],
    failures: list[str],
) -> None:
    """Run a mode once more; one that fails is taken out, and `failures` says why."""
    environment = None if script.endswith("_ours.py") else KEEP_MEMORY
    try:
        modes[mode].results.append(run_worker(python, script, words, environment=environment))
    except WorkerError as error:
        failures.append(str(error))
        del modes[mode]


def worth_a_run(modes: Mapping[str, Measured]) -> list[str]:
    """The modes but those that were measured once and are slow."""
    best = min((measured.seconds() for measured in modes.values() if measured.results), default=0.0)
    return [
        mode
        for mode, measured in modes.items()
        if not (measured.results and measured.seconds() > WORTH_REPEATING * best)
    ]


def step_options(description: str | None, *packages: str, sequences: str = "sequences") -> Any:
    """A parser with what every benchmark of a step is asked: model, size, rounds, and the peer."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=4, help=f"{sequences} of a step")
    parser.add_argument("--length", type=int, default=512, help=f"tokens of one of the {sequences}")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="how often the modes take turns")
    names = " and ".join(["torch", "transformers", *packages])
    parser.add_argument(
        "--peer", default="auto", help=f"a Python with {names}; auto makes one, none does without"
    )
    parser.add_argument("--quick", action="store_true", help="one round of one step: a rough figure")
    return parser


def chosen_work(options: argparse.Namespace) -> Work:
    """The work that was asked for; `--quick` changes the number of rounds too."""
    if options.quick:
        options.rounds, options.steps, options.warm_up = 1, 1, 1
    return Work(find_model(options.model), options.batch, options.length, options.steps, options.warm_up)


def find_model(name: str) -> str:
    """The folder of a model; on ErnieKit's side only."""
    from erniekit.checkpoint.sources import locate_model

    return str(locate_model(model_name_or_path=name, download_hub="huggingface"))


def say_measured(
    tokens: int, step: str, sides: Mapping[str, Mapping[str, Measured]], where: Mapping[str, Any]
) -> None:
    """Say the machine, what a step is, and a table of all modes; keys of `sides` are words for people."""
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']} (other work makes the figures worthless)")
    say(f"step: {step}")
    names = {measured.results[0]["name"]: None for side in sides.values() for measured in side.values()}
    say("\n".join([*names, *(["no peer"] if len(names) < 2 else [])]))
    rows = [["mode", "tokens/s", "s a step (least, most)", "peak GB", "first loss", "runs"]]
    for words, side in sides.items():
        for mode, measured in side.items():
            seconds, (least, most) = measured.seconds(), measured.spread()
            times = f"{seconds:.3f} ({least:.3f}, {most:.3f})"
            numbers = [f"{measured.peak():.2f}", f"{measured.loss():.5f}", str(len(measured.results))]
            rows.append([f"{words} {mode}", f"{tokens / seconds:.0f}", times, *numbers])
    say(table(rows))


def figures_of(tokens: int, modes: Mapping[str, Measured]) -> dict[str, dict[str, Any]]:
    """Speed and peak memory of every mode."""
    return {
        mode: {
            "tokens_per_s": round(tokens / measured.seconds(), 2),
            "peak_rss_gb": round(measured.peak(), 3),
            "seconds_per_step": round(measured.seconds(), 4),
        }
        for mode, measured in modes.items()
    }


def compared(ours: Mapping[str, Mapping[str, Any]], peer: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of our first mode, beside the peer's fastest and its leanest; null without a peer."""
    first = next(iter(ours.values()))
    best = max((figure["tokens_per_s"] for figure in peer.values()), default=None)
    leanest = min((figure["peak_rss_gb"] for figure in peer.values()), default=None)
    return {
        "tokens_per_s": first["tokens_per_s"],
        "peak_rss_gb": first["peak_rss_gb"],
        "ratio_best": round(first["tokens_per_s"] / best, 4) if best else None,
        "memory_ratio": round(first["peak_rss_gb"] / leanest, 4) if leanest else None,
    }


def unequal(ours: Mapping[str, Measured], torch: Mapping[str, Measured]) -> list[str]:
    """Modes whose first loss is another than the most exact one's."""
    every = {f"ErnieKit {mode}": m.loss() for mode, m in ours.items()}
    every |= {f"torch {mode}": m.loss() for mode, m in torch.items()}
    exact = next((name for name in ("torch fp32", "ErnieKit fp32") if name in every), next(iter(every)))
    problems = []
    for name, loss in every.items():
        tolerance = LOSS_TOLERANCE["fp32" if name.endswith("fp32") else "bf16"]
        if not abs(loss - every[exact]) <= tolerance * abs(every[exact]):
            problems.append(f"first losses differ, not the same work: {name} {loss}, {exact} {every[exact]}")
    return problems


def conclude(summary: Mapping[str, Any], problems: Sequence[str], failures: Sequence[str]) -> int:
    """Say what went wrong and, as the last line, the figures; the exit code."""
    for problem in [*problems, *failures]:
        say(problem)
    say(json.dumps({**summary, "losses_agree": not problems, "failed_modes": len(failures)}))
    return 1 if problems or failures else 0


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
