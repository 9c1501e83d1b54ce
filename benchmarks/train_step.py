"""Times one training step of ErnieKit, and of transformers on PyTorch beside it in the same run.

    python benchmarks/train_step.py --model starter --batch 4 --length 512
    python benchmarks/train_step.py --peer /path/to/venv-with-torch-and-transformers/bin/python
    python benchmarks/train_step.py --quick

A step is what a trainer does: forward, backward, gradient norm and clipping, AdamW; all parameters,
full sequences without padding. All sides read the same model folder and the same tokens, and their
first losses have to agree, otherwise the times compare different work. Every mode of every side runs
in a process of its own, and they take turns for several rounds, so that a machine that slows down
slows all. A mode of PyTorch that takes over 1.5 times as long as its best one is measured once.

The peer's settings: as many threads as cores, scaled-dot-product attention, fused AdamW, logits of
labelled positions only (`chunked`: 512 of them at a time, differentiated at once), and memory that
glibc keeps between steps, without which it is a fifth slower.

The last line is one JSON object.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from measure import KEEP_MEMORY, Work, WorkerError, machine, run_worker, say, table
from peer_environment import find_peer

# Relative difference of first losses: of fp32, and of bf16, which rounds differently on each side.
LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-3}
WORTH_REPEATING = 1.5
CHUNK = 512
OURS = ("bf16", "bf16_lowprecision_moment", "fp32")
# mode -> (mode of step_torch.py, positions of a chunk of logits)
TORCH = {
    "fp32": ("fp32", 0),
    "bf16_autocast": ("bf16_autocast", 0),
    "bf16_autocast_chunked": ("bf16_autocast", CHUNK),
    "bf16_pure": ("bf16_pure", 0),
    "bf16_pure_chunked": ("bf16_pure", CHUNK),
}
# Same precision of weights' masters and optimizer states: our mode -> PyTorch's.
SAME_STATES = {"bf16": "bf16_autocast", "bf16_lowprecision_moment": "bf16_pure"}


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


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the sides do not compute the same loss."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.rounds, options.steps, options.warm_up, options.gemm_seconds = 1, 1, 1, 0.3
    work = Work(find_model(options.model), options.batch, options.length, options.steps, options.warm_up)
    before = machine()
    peer = find_peer(options.peer)
    started = time.monotonic()
    ours = {mode: Measured() for mode in options.ours}
    torch = {mode: Measured() for mode in (TORCH if peer else ())}
    rates: dict[str, float] = {}
    failures: list[str] = []
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}, {time.monotonic() - started:.0f} s so far")
        if options.gemm_seconds:
            _measure_gemm(rates, peer, options.gemm_seconds)
        _take_turns(work, ours, torch, peer, failures, kernels=options.kernels)
    return report(work, ours, torch, rates, before, failures)


def _take_turns(
    work: Work,
    ours: dict[str, Measured],
    torch: dict[str, Measured],
    peer: str | None,
    failures: list[str],
    *,
    kernels: str,
) -> None:
    """Run every mode once more; a mode that fails is left out from then on, and told at the end."""
    best = min((measured.seconds() for measured in torch.values()), default=0.0) if _repeated(torch) else 0.0
    for mode in list(ours):
        words = [*work.words(), "--mode", mode, "--kernels", kernels]
        add(ours, mode, sys.executable, "step_ours.py", words, failures)
    for mode in list(torch):
        if best and torch[mode].seconds() > WORTH_REPEATING * best:
            continue
        name, chunk = TORCH[mode]
        words = [*work.words(), "--mode", name, "--chunk", str(chunk)]
        add(torch, mode, str(peer), "step_torch.py", words, failures)


def _repeated(modes: dict[str, Measured]) -> bool:
    return any(measured.results for measured in modes.values())


def add(
    modes: dict[str, Measured], mode: str, python: str, script: str, words: list[str], failures: list[str]
) -> None:
    """Run a mode once more; one that fails is taken out, and `failures` says why."""
    environment = KEEP_MEMORY if script == "step_torch.py" else None
    try:
        modes[mode].results.append(run_worker(python, script, words, environment=environment))
    except WorkerError as error:
        failures.append(str(error))
        del modes[mode]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="how often the modes take turns")
    parser.add_argument("--ours", nargs="+", default=OURS[:2], choices=OURS, help="modes of ErnieKit")
    parser.add_argument("--kernels", default="auto", help="kernels of ErnieKit")
    parser.add_argument(
        "--peer",
        default="auto",
        help="a Python with torch and transformers; auto makes one, none does without",
    )
    parser.add_argument("--gemm-seconds", type=float, default=1.0, help="time of each matrix product")
    parser.add_argument("--quick", action="store_true", help="one round of one step: a rough figure")
    return parser


def find_model(name: str) -> str:
    """The folder of a model."""
    from erniekit.checkpoint.sources import locate_model

    return str(locate_model(model_name_or_path=name, download_hub="huggingface"))


def _measure_gemm(rates: dict[str, float], peer: str | None, seconds: float) -> None:
    """Raise the best rate in GFLOP/s of each side that can be measured here."""
    sides = {"ours": sys.executable, "onednn": sys.executable, **({"torch": peer} if peer else {})}
    for side, python in sides.items():
        try:
            found = run_worker(python, "gemm.py", ["--side", side, "--seconds", str(seconds)])
        except WorkerError as error:
            if side not in rates:
                say(f"no matrix product by {side}: {str(error).strip().splitlines()[-1]}")
            continue
        rates[side] = max(rates.get(side, 0.0), *found.values())


def report(
    work: Work,
    ours: dict[str, Measured],
    torch: dict[str, Measured],
    rates: dict[str, float],
    where: dict[str, Any],
    failures: list[str],
) -> int:
    """Say everything; returns 1 when losses differ or a mode failed."""
    if not ours:
        say("\n".join(failures))
        return 1
    tokens = work.batch * work.length
    summary = summarise(work, ours, torch, rates, where)
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']} (other work makes the figures worthless)")
    say(f"step: {work.batch} x {work.length} tokens, all parameters; {work.folder}")
    for side in (ours, torch):
        say(next((measured.results[0]["name"] for measured in side.values()), "no peer"))
    rows = [["mode", "tokens/s", "s a step (least, most)", "peak GB", "first loss", "runs"]]
    for side, measured_of in (("ErnieKit", ours), ("torch", torch)):
        for mode, measured in measured_of.items():
            seconds, (least, most) = measured.seconds(), measured.spread()
            rows.append(
                [
                    f"{side} {mode}",
                    f"{tokens / seconds:.0f}",
                    f"{seconds:.3f} ({least:.3f}, {most:.3f})",
                    f"{measured.peak():.2f}",
                    f"{measured.loss():.5f}",
                    str(len(measured.results)),
                ]
            )
    say(table(rows))
    say("bf16 products, GFLOP/s: " + ", ".join(f"{side} {rate:.0f}" for side, rate in rates.items()))
    if summary["memory_ratio_same_precision"] and summary["memory_ratio_chunked"]:
        say(
            f"ratio {summary['ratio_best']:.2f} to the best mode of torch, memory "
            f"{summary['memory_ratio_same_precision']:.2f} of torch's with the same optimizer states "
            f"({summary['memory_ratio_chunked']:.2f} where torch's logits are chunked)"
        )
    if summary["mfu"]:
        say(f"MFU {summary['mfu']:.1%} of {summary['gemm_peak_gflops']:.0f} GFLOP/s")
    problems = unequal(ours, torch)
    for problem in problems + failures:
        say(problem)
    say(json.dumps({**summary, "losses_agree": not problems, "failed_modes": len(failures)}))
    return 1 if problems or failures else 0


def summarise(
    work: Work,
    ours: dict[str, Measured],
    torch: dict[str, Measured],
    rates: dict[str, float],
    where: dict[str, Any],
) -> dict[str, Any]:
    """The figures of the last line; those that need the peer are null without it."""
    tokens = work.batch * work.length
    figures = {
        side: {
            mode: {
                "tokens_per_s": round(tokens / measured.seconds(), 2),
                "peak_rss_gb": round(measured.peak(), 3),
                "seconds_per_step": round(measured.seconds(), 4),
            }
            for mode, measured in measured_of.items()
        }
        for side, measured_of in (("ours", ours), ("torch", torch))
    }
    first = next(iter(ours))
    speed = figures["ours"][first]["tokens_per_s"]
    best = max((figure["tokens_per_s"] for figure in figures["torch"].values()), default=None)
    peak = max(rates.values(), default=0.0)
    flops = flops_per_token(work)
    return {
        "tokens_per_s": speed,
        "peak_rss_gb": figures["ours"][first]["peak_rss_gb"],
        "mode": first,
        "ours": figures["ours"],
        "torch": figures["torch"],
        "ratio_best": round(speed / best, 4) if best else None,
        "memory_ratio_same_precision": memory_ratio(ours, torch, suffix=""),
        "memory_ratio_chunked": memory_ratio(ours, torch, suffix="_chunked"),
        "gemm_peak_gflops": round(peak, 1),
        "gemm_gflops": {side: round(rate, 1) for side, rate in rates.items()},
        "model_flops_per_token": flops,
        "mfu": round(speed * flops / (peak * 1e9), 4) if peak else None,
        "batch": work.batch,
        "length": work.length,
        "machine": where,
    }


def memory_ratio(ours: dict[str, Measured], torch: dict[str, Measured], *, suffix: str) -> float | None:
    """Our peak memory over PyTorch's with the same states of the optimizer; the worst of the pairs."""
    pairs = [(mine, theirs + suffix) for mine, theirs in SAME_STATES.items()]
    ratios = [ours[a].peak() / torch[b].peak() for a, b in pairs if a in ours and b in torch]
    return round(max(ratios), 4) if ratios else None


def flops_per_token(work: Work) -> float:
    """Model FLOPs of a training step a token: 6 a weight in products, and the visible half of attention."""
    from pathlib import Path

    from erniekit.estimate.flops import training_flops
    from erniekit.models.registry import read_model_config

    config = read_model_config(Path(work.folder))
    return training_flops(config, attended=work.length, labelled_share=(work.length - 1) / work.length)


def unequal(ours: dict[str, Measured], torch: dict[str, Measured]) -> list[str]:
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


if __name__ == "__main__":
    sys.exit(main())
