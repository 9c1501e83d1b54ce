"""Times a LoRA step of ErnieKit, and of peft on PyTorch beside it in the same run.

    python benchmarks/lora_step.py --model starter --batch 4 --length 512 --rank 8
    python benchmarks/lora_step.py --peer /path/to/venv-with-torch-transformers-and-peft/bin/python
    python benchmarks/lora_step.py --quick

The same work as `train_step.py`, with an adapter on every linear layer of every block and the rest
frozen. Both adapters begin with B = 0, so that the first losses are the model's own and have to agree.
Full training of ErnieKit (`full`) runs beside for comparison; it is in no ratio.

The last line is one JSON object: `ratio_best`, our tokens/s over those of peft's fastest mode, and
`memory_ratio`, our peak memory over that of peft's leanest mode.
"""

import argparse
import json
import sys
from typing import Any

from measure import Work, machine, say, table
from peer_environment import find_peer
from train_step import TORCH, Measured, add, find_model, unequal

OURS = ("bf16", "fp32")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the sides do not compute the same loss."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.rounds, options.steps, options.warm_up = 1, 1, 1
    work = Work(find_model(options.model), options.batch, options.length, options.steps, options.warm_up)
    where = machine()
    peer = find_peer(options.peer, "peft")
    ours = {mode: Measured() for mode in options.ours}
    full = {"bf16": Measured()} if options.full else {}
    torch = {mode: Measured() for mode in (TORCH if peer else ())}
    failures: list[str] = []
    adapter = ["--lora-rank", str(options.rank)]
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        for mode in list(ours):
            add(
                ours,
                mode,
                sys.executable,
                "step_ours.py",
                [*work.words(), "--mode", mode, *adapter],
                failures,
            )
        for mode in list(full):
            add(full, mode, sys.executable, "step_ours.py", [*work.words(), "--mode", mode], failures)
        for mode in list(torch):
            name, chunk = TORCH[mode]
            words = [*work.words(), "--mode", name, "--chunk", str(chunk), *adapter]
            add(torch, mode, str(peer), "step_torch.py", words, failures)
    return report(work, options.rank, {"ours": ours, "torch": torch, "full": full}, where, failures)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="how often the modes take turns")
    parser.add_argument("--ours", nargs="+", default=OURS[:1], choices=OURS, help="modes of ErnieKit")
    parser.add_argument("--full", action="store_true", help="time full training of ErnieKit too")
    parser.add_argument(
        "--peer",
        default="auto",
        help="a Python with torch, transformers and peft; auto makes one, none does without",
    )
    parser.add_argument("--quick", action="store_true", help="one round of one step: a rough figure")
    return parser


def report(
    work: Work,
    rank: int,
    sides: dict[str, dict[str, Measured]],
    where: dict[str, Any],
    failures: list[str],
) -> int:
    """Say everything; returns 1 when losses differ or a mode failed."""
    ours, torch = sides["ours"], sides["torch"]
    if not ours:
        say("\n".join(failures))
        return 1
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']} (other work makes the figures worthless)")
    say(f"step: {work.batch} x {work.length} tokens, adapter of rank {rank}; {work.folder}")
    for side in (ours, torch):
        say(next((measured.results[0]["name"] for measured in side.values()), "no peer"))
    rows = [["mode", "tokens/s", "s a step (least, most)", "peak GB", "first loss", "runs"]]
    words = {"ours": "ErnieKit", "torch": "peft", "full": "ErnieKit, all parameters,"}
    for side, measured_of in sides.items():
        for mode, measured in measured_of.items():
            seconds, (least, most) = measured.seconds(), measured.spread()
            rows.append(
                [
                    f"{words[side]} {mode}",
                    f"{work.batch * work.length / seconds:.0f}",
                    f"{seconds:.3f} ({least:.3f}, {most:.3f})",
                    f"{measured.peak():.2f}",
                    f"{measured.loss():.5f}",
                    str(len(measured.results)),
                ]
            )
    say(table(rows))
    problems = unequal(ours, torch)
    for problem in problems + failures:
        say(problem)
    summary = summarise(work, rank, sides, where)
    say(json.dumps({**summary, "losses_agree": not problems, "failed_modes": len(failures)}))
    return 1 if problems or failures else 0


def summarise(
    work: Work, rank: int, sides: dict[str, dict[str, Measured]], where: dict[str, Any]
) -> dict[str, Any]:
    """The figures of the last line; those that need the peer are null without it."""
    figures = {
        side: {
            mode: {
                "tokens_per_s": round(work.batch * work.length / measured.seconds(), 2),
                "peak_rss_gb": round(measured.peak(), 3),
                "seconds_per_step": round(measured.seconds(), 4),
            }
            for mode, measured in measured_of.items()
        }
        for side, measured_of in sides.items()
    }
    first = next(iter(figures["ours"].values()))
    best = max((figure["tokens_per_s"] for figure in figures["torch"].values()), default=None)
    leanest = min((figure["peak_rss_gb"] for figure in figures["torch"].values()), default=None)
    return {
        "tokens_per_s": first["tokens_per_s"],
        "peak_rss_gb": first["peak_rss_gb"],
        **figures,
        "ratio_best": round(first["tokens_per_s"] / best, 4) if best else None,
        "memory_ratio": round(first["peak_rss_gb"] / leanest, 4) if leanest else None,
        "rank": rank,
        "batch": work.batch,
        "length": work.length,
        "machine": where,
    }


if __name__ == "__main__":
    sys.exit(main())
