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
import sys
import time
from typing import Any

from measure import (
    Measured,
    Work,
    WorkerError,
    add,
    chosen_work,
    compared,
    conclude,
    figures_of,
    machine,
    run_worker,
    say,
    say_measured,
    step_options,
    unequal,
    worth_a_run,
)
from peer_environment import find_peer

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


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the sides do not compute the same loss."""
    options = _parser().parse_args(argv)
    work = chosen_work(options)
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
            _measure_gemm(rates, peer, 0.3 if options.quick else options.gemm_seconds)
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
    for mode in list(ours):
        words = [*work.words(), "--mode", mode, "--kernels", kernels]
        add(ours, mode, sys.executable, "step_ours.py", words, failures)
    for mode in worth_a_run(torch):
        name, chunk = TORCH[mode]
        words = [*work.words(), "--mode", name, "--chunk", str(chunk)]
        add(torch, mode, str(peer), "step_torch.py", words, failures)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = step_options(__doc__)
    parser.add_argument("--ours", nargs="+", default=OURS[:2], choices=OURS, help="modes of ErnieKit")
    parser.add_argument("--kernels", default="auto", help="kernels of ErnieKit")
    parser.add_argument("--gemm-seconds", type=float, default=1.0, help="time of each matrix product")
    return parser


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
    step = f"{work.batch} x {work.length} tokens, all parameters; {work.folder}"
    say_measured(tokens, step, {"ErnieKit": ours, "torch": torch}, where)
    say("bf16 products, GFLOP/s: " + ", ".join(f"{side} {rate:.0f}" for side, rate in rates.items()))
    if summary["memory_ratio_same_precision"] and summary["memory_ratio_chunked"]:
        say(
            f"ratio {summary['ratio_best']:.2f} to the best mode of torch, memory "
            f"{summary['memory_ratio_same_precision']:.2f} of torch's with the same optimizer states "
            f"({summary['memory_ratio_chunked']:.2f} where torch's logits are chunked)"
        )
    if summary["mfu"]:
        say(f"MFU {summary['mfu']:.1%} of {summary['gemm_peak_gflops']:.0f} GFLOP/s")
    return conclude(summary, unequal(ours, torch), failures)


def summarise(
    work: Work,
    ours: dict[str, Measured],
    torch: dict[str, Measured],
    rates: dict[str, float],
    where: dict[str, Any],
) -> dict[str, Any]:
    """The figures of the last line; those that need the peer are null without it."""
    tokens = work.batch * work.length
    figures = {"ours": figures_of(tokens, ours), "torch": figures_of(tokens, torch)}
    against = compared(figures["ours"], figures["torch"])
    speed = against["tokens_per_s"]
    peak = max(rates.values(), default=0.0)
    flops = flops_per_token(work)
    return {
        **{key: against[key] for key in ("tokens_per_s", "peak_rss_gb", "ratio_best")},
        "mode": next(iter(ours)),
        **figures,
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


if __name__ == "__main__":
    sys.exit(main())
