"""Where the time of a training step goes: by kernel with native kernels, by operator with Paddle's.

    python benchmarks/step_profile.py
    python benchmarks/step_profile.py --kernels paddle

Native kernels are timed where Python calls them; what no kernel accounts for is Python, dispatch and
the operators that Paddle still does. Paddle's operators are those of its own profiler, whose times
overlap where one operator calls another. The last line is one JSON object.
"""

import argparse
import json
import sys
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from measure import Work, find_model, machine, say, table

WARM_UP = 2


class Clock:
    """Calls and seconds by name, of functions that were handed out by a library."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def reset(self) -> None:
        """Forget what was counted."""
        self.seconds.clear()
        self.calls.clear()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose calls count."""

        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds[name] += time.perf_counter() - started
                self.calls[name] += 1

        return call

    def watch(self, library: Any) -> None:
        """Time every function that a library declares from now on."""
        declare = library.declare
        known: dict[str, Any] = {}

        def declare_timed(name: str, *types: Any, result: Any = None) -> Any:
            if name not in known:
                known[name] = self.timed(name, declare(name, *types, result=result))
            return known[name]

        library.declare = declare_timed


def main(argv: list[str] | None = None) -> int:
    """Profile and say the table and the JSON."""
    options = _parser().parse_args(argv)
    where = machine()
    from erniekit.cli.launch import require_paddle

    require_paddle()
    work = Work(find_model(options.model), options.batch, options.length, options.steps, WARM_UP)
    profile = _native if options.kernels == "native" else _paddle
    seconds, rows = profile(work, options)
    rows.sort(key=lambda row: -row["ms"])
    lines = [["what", "calls a step", "ms a step", "share"]]
    for row in rows:
        lines.append(
            [row["name"], f"{row['calls']:g}", f"{row['ms']:.1f}", f"{row['ms'] / seconds / 10:.1f} %"]
        )
    say(table(lines))
    say(f"a step of {work.batch} x {work.length} tokens: {seconds:.3f} s")
    figures = {"kernels": options.kernels, "compute_type": options.mode, "step_s": round(seconds, 4)}
    say(json.dumps({**figures, "batch": work.batch, "length": work.length, "parts": rows, "machine": where}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=3, help="steps that are looked at")
    parser.add_argument("--kernels", choices=("native", "paddle"), default="native")
    parser.add_argument("--mode", choices=("bf16", "fp32"), default="bf16", help="compute_type")
    return parser


def _native(work: Work, options: Namespace) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a step, and a row for every kernel and for the rest."""
    from step_ours import build_step

    from erniekit.ops.kernels.library import load

    clock = Clock()
    clock.watch(load())
    step = build_step(
        work, Namespace(mode=options.mode, kernels="native", random=False, sample=0, lora_rank=0)
    )
    for _ in range(work.warm_up):
        step()
    clock.reset()
    started = time.perf_counter()
    for _ in range(work.steps):
        step()
    seconds = (time.perf_counter() - started) / work.steps
    rows = [
        {"name": name, "calls": clock.calls[name] / work.steps, "ms": round(spent / work.steps * 1e3, 3)}
        for name, spent in clock.seconds.items()
    ]
    rest = seconds * 1e3 - sum(row["ms"] for row in rows)
    return seconds, [*rows, {"name": "Python, and Paddle's operators", "calls": 1, "ms": round(rest, 3)}]


def _paddle(work: Work, options: Namespace) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of a step, and a row for every operator that takes over a hundredth of it."""
    import paddle.profiler as profiler
    from paddle.profiler.profiler_statistic import StatisticData
    from step_ours import build_step

    step = build_step(
        work, Namespace(mode=options.mode, kernels="paddle", random=False, sample=0, lora_rank=0)
    )
    for _ in range(work.warm_up):
        step()
    with profiler.Profiler(targets=[profiler.ProfilerTarget.CPU], on_trace_ready=lambda found: None) as found:
        started = time.perf_counter()
        for _ in range(work.steps):
            step()
        seconds = (time.perf_counter() - started) / work.steps
    result = found.profiler_result
    items = StatisticData(result.get_data(), result.get_extra_info()).event_summary.items
    rows = [
        {"name": name, "calls": item.call / work.steps, "ms": round(item.cpu_time / work.steps / 1e6, 3)}
        for name, item in items.items()
        if item.cpu_time / work.steps / 1e9 > 0.01 * seconds
    ]
    return seconds, rows


if __name__ == "__main__":
    sys.exit(main())
