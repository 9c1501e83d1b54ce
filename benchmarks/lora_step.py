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
    unequal,
    worth_a_run,
)
from peer_environment import find_peer
from train_step import TORCH

OURS = ("bf16", "fp32")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the sides do not compute the same loss."""
    options = _parser().parse_args(argv)
    work = chosen_work(options)
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
            words = [*work.words(), "--mode", mode, *adapter]
            add(ours, mode, sys.executable, "step_ours.py", words, failures)
        for mode in list(full):
            add(full, mode, sys.executable, "step_ours.py", [*work.words(), "--mode", mode], failures)
        for mode in worth_a_run(torch):
            name, chunk = TORCH[mode]
            words = [*work.words(), "--mode", name, "--chunk", str(chunk), *adapter]
            add(torch, mode, str(peer), "step_torch.py", words, failures)
    return report(work, options.rank, {"ours": ours, "torch": torch, "full": full}, where, failures)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = step_options(__doc__, "peft")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter")
    parser.add_argument("--ours", nargs="+", default=OURS[:1], choices=OURS, help="modes of ErnieKit")
    parser.add_argument("--full", action="store_true", help="time full training of ErnieKit too")
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
    tokens = work.batch * work.length
    step = f"{work.batch} x {work.length} tokens, adapter of rank {rank}; {work.folder}"
    words = {"ErnieKit": ours, "peft": torch, "ErnieKit, all parameters,": sides["full"]}
    say_measured(tokens, step, words, where)
    figures = {side: figures_of(tokens, measured_of) for side, measured_of in sides.items()}
    size = {"rank": rank, "batch": work.batch, "length": work.length}
    summary = {**compared(figures["ours"], figures["torch"]), **figures, **size, "machine": where}
    return conclude(summary, unequal(ours, torch), failures)


if __name__ == "__main__":
    sys.exit(main())
