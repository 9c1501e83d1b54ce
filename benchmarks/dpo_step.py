"""Times a DPO step of ErnieKit, and of TRL on PyTorch beside it in the same run.

    python benchmarks/dpo_step.py --model starter --batch 4 --length 512
    python benchmarks/dpo_step.py --peer /path/to/venv-with-torch-transformers-and-trl/bin/python
    python benchmarks/dpo_step.py --quick

A step is forward, DPO loss, backward, gradient norm and clipping, AdamW, all parameters. A pair is a
prompt of half of `--length` tokens and two answers of a quarter each; tokens/s count the prompt once
on either side. Both take the log-probabilities of the reference from beforehand, so no second model is
in memory; ErnieKit has prompt and both answers in one sequence, TRL in two. TRL's own loss and its fused
output layer run, gradient checkpointing is off. The first losses have to be ln 2 on both sides.

The last line is one JSON object: `ratio_best`, our tokens/s over those of TRL's fastest mode, and
`memory_ratio`, our peak memory over that of TRL's leanest mode.
"""

import argparse
import json
import math
import sys
from typing import Any

from measure import KEEP_MEMORY, Work, machine, run_worker, say, table
from peer_environment import find_peer
from train_step import Measured, WorkerError, find_model

OURS = ("bf16", "fp32")
PEER = ("bf16_autocast", "bf16_pure", "fp32")
# Distance of a first loss from ln 2 that rounding may make.
LOSS_TOLERANCE = 2e-2


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a side does not compute the loss, or a mode failed."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.rounds, options.steps, options.warm_up = 1, 1, 1
    work = Work(find_model(options.model), options.batch, options.length, options.steps, options.warm_up)
    where = machine()
    peer = find_peer(options.peer, "trl")
    ours = {mode: Measured() for mode in options.ours}
    trl = {mode: Measured() for mode in (options.modes if peer else ())}
    failures: list[str] = []
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        for modes, python, script in ((ours, sys.executable, "dpo_ours.py"), (trl, str(peer), "dpo_trl.py")):
            for mode in list(modes):
                _add(modes, mode, python, script, [*work.words(), "--mode", mode], failures)
    return report(work, ours, trl, where, failures)


def _add(
    modes: dict[str, Measured], mode: str, python: str, script: str, words: list[str], failures: list[str]
) -> None:
    try:
        environment = KEEP_MEMORY if script == "dpo_trl.py" else None
        modes[mode].results.append(run_worker(python, script, words, environment=environment))
    except WorkerError as error:
        failures.append(str(error))
        del modes[mode]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=4, help="pairs of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a prompt and both answers")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round")
    parser.add_argument("--warm-up", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3, help="how often the modes take turns")
    parser.add_argument("--ours", nargs="+", default=OURS[:1], choices=OURS, help="modes of ErnieKit")
    parser.add_argument("--modes", nargs="+", default=PEER[:2], choices=PEER, help="modes of TRL")
    parser.add_argument(
        "--peer",
        default="auto",
        help="a Python with torch, transformers and trl; auto makes one, none does without",
    )
    parser.add_argument("--quick", action="store_true", help="one round of one step: a rough figure")
    return parser


def report(
    work: Work,
    ours: dict[str, Measured],
    trl: dict[str, Measured],
    where: dict[str, Any],
    failures: list[str],
) -> int:
    """Say everything; the exit code."""
    if not ours:
        say("\n".join(failures))
        return 1
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']} (other work makes the figures worthless)")
    say(f"step: {work.batch} pairs of {work.length} tokens, all parameters; {work.folder}")
    for side in (ours, trl):
        say(next((measured.results[0]["name"] for measured in side.values()), "no peer"))
    rows = [["mode", "tokens/s", "s a step (least, most)", "peak GB", "first loss", "runs"]]
    for words, modes in (("ErnieKit", ours), ("TRL", trl)):
        for mode, measured in modes.items():
            seconds, (least, most) = measured.seconds(), measured.spread()
            speed = f"{work.batch * work.length / seconds:.0f}"
            times = f"{seconds:.3f} ({least:.3f}, {most:.3f})"
            numbers = [f"{measured.peak():.2f}", f"{measured.loss():.5f}", str(len(measured.results))]
            rows.append([f"{words} {mode}", speed, times, *numbers])
    say(table(rows))
    problems = wrong_losses(ours, trl)
    for problem in problems + failures:
        say(problem)
    summary = summarise(work, ours, trl, where)
    say(json.dumps({**summary, "losses_agree": not problems, "failed_modes": len(failures)}))
    return 1 if problems or failures else 0


def wrong_losses(ours: dict[str, Measured], trl: dict[str, Measured]) -> list[str]:
    """Modes whose first loss is not ln 2: their reference is not the model."""
    every = {f"ErnieKit {mode}": m.loss() for mode, m in ours.items()}
    every |= {f"TRL {mode}": m.loss() for mode, m in trl.items()}
    return [
        f"the first loss of {name} is {loss}, not ln 2"
        for name, loss in every.items()
        if not abs(loss - math.log(2)) <= LOSS_TOLERANCE
    ]


def summarise(
    work: Work, ours: dict[str, Measured], trl: dict[str, Measured], where: dict[str, Any]
) -> dict[str, Any]:
    """The figures of the last line; those that need the peer are null without it."""
    figures = {
        side: {
            mode: {
                "tokens_per_s": round(work.batch * work.length / measured.seconds(), 2),
                "peak_rss_gb": round(measured.peak(), 3),
                "seconds_per_step": round(measured.seconds(), 4),
            }
            for mode, measured in modes.items()
        }
        for side, modes in (("ours", ours), ("trl", trl))
    }
    first = next(iter(figures["ours"].values()))
    best = max((figure["tokens_per_s"] for figure in figures["trl"].values()), default=None)
    leanest = min((figure["peak_rss_gb"] for figure in figures["trl"].values()), default=None)
    return {
        "tokens_per_s": first["tokens_per_s"],
        "peak_rss_gb": first["peak_rss_gb"],
        **figures,
        "ratio_best": round(first["tokens_per_s"] / best, 4) if best else None,
        "memory_ratio": round(first["peak_rss_gb"] / leanest, 4) if leanest else None,
        "batch": work.batch,
        "length": work.length,
        "machine": where,
    }


if __name__ == "__main__":
    sys.exit(main())
