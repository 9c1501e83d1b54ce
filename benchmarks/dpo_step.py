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
import math
import sys
from typing import Any

from measure import (
    Measured,
    Work,
    add,
    chosen_work,
    compared,
    conclude,
    figures_of,
    machine,
    say,
    say_measured,
    step_options,
)
from peer_environment import find_peer

OURS = ("bf16", "fp32")
PEER = ("bf16_autocast", "bf16_pure", "fp32")
# Distance of a first loss from ln 2 that rounding may make.
LOSS_TOLERANCE = 2e-2


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a side does not compute the loss, or a mode failed."""
    options = _parser().parse_args(argv)
    work = chosen_work(options)
    where = machine()
    peer = find_peer(options.peer, "trl")
    ours = {mode: Measured() for mode in options.ours}
    trl = {mode: Measured() for mode in (options.modes if peer else ())}
    failures: list[str] = []
    for number in range(options.rounds):
        say(f"round {number + 1} of {options.rounds}")
        for modes, python, script in ((ours, sys.executable, "dpo_ours.py"), (trl, str(peer), "dpo_trl.py")):
            for mode in list(modes):
                add(modes, mode, python, script, [*work.words(), "--mode", mode], failures)
    return report(work, ours, trl, where, failures)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = step_options(__doc__, "trl", sequences="pairs")
    parser.add_argument("--ours", nargs="+", default=OURS[:1], choices=OURS, help="modes of ErnieKit")
    parser.add_argument("--modes", nargs="+", default=PEER, choices=PEER, help="modes of TRL")
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
    tokens = work.batch * work.length
    step = f"{work.batch} pairs of {work.length} tokens, all parameters; {work.folder}"
    say_measured(tokens, step, {"ErnieKit": ours, "TRL": trl}, where)
    figures = {"ours": figures_of(tokens, ours), "trl": figures_of(tokens, trl)}
    size = {"batch": work.batch, "length": work.length}
    summary = {**compared(figures["ours"], figures["trl"]), **figures, **size, "machine": where}
    return conclude(summary, wrong_losses(ours, trl), failures)


def wrong_losses(ours: dict[str, Measured], trl: dict[str, Measured]) -> list[str]:
    """Modes whose first loss is not ln 2: their reference is not the model."""
    every = {f"ErnieKit {mode}": m.loss() for mode, m in ours.items()}
    every |= {f"TRL {mode}": m.loss() for mode, m in trl.items()}
    return [
        f"the first loss of {name} is {loss}, not ln 2"
        for name, loss in every.items()
        if not abs(loss - math.log(2)) <= LOSS_TOLERANCE
    ]


if __name__ == "__main__":
    sys.exit(main())
