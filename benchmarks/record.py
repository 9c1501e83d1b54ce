"""Runs the benchmarks whose figures the documents show, and keeps what they measured.

    python benchmarks/record.py --peer .venv-peer/bin/python
    python benchmarks/record.py overhead ops

The JSON of each goes to benchmarks/figures/NAME.json; `make docs` writes the tables from there. About
30 minutes on two cores with nothing else to do; with other work the figures are worthless.
"""

import argparse
import json
import subprocess
import sys
import time

from measure import HERE, machine, say

FIGURES = HERE / "figures"
# Name of the figures -> script and words; those with True compare with a peer.
BENCHMARKS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "train_step": ("train_step.py", ("--model", "starter", "--batch", "4", "--length", "512"), True),
    "ops": ("ops.py", (), True),
    "scaling": ("scaling.py", (), True),
    "moe_step": ("moe_step.py", (), True),
    "lora_step": ("lora_step.py", ("--model", "starter", "--batch", "4", "--length", "512"), True),
    "dpo_step": ("dpo_step.py", ("--model", "starter", "--batch", "4", "--length", "512"), True),
    "methods": ("methods.py", (), False),
    "decode": ("decode.py", (), False),
    "quant_decode": ("quant_decode.py", ("--rounds", "3", "--repeats", "4"), False),
    "convergence": ("convergence.py", (), False),
    "fp8_loss": ("fp8_loss.py", (), False),
    "fp8_loss_random": ("fp8_loss.py", ("--random",), False),
    "overhead": ("overhead.py", (), False),
    "parallel": ("parallel.py", (), False),
    "profile_native": ("step_profile.py", ("--kernels", "native", "--mode", "bf16"), False),
    "profile_paddle": ("step_profile.py", ("--kernels", "paddle", "--mode", "fp32", "--steps", "1"), False),
}


def main(argv: list[str] | None = None) -> int:
    """Run the chosen benchmarks; returns 1 when one failed (its old figures stay)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all without")
    parser.add_argument("--peer", default="auto", help="as for train_step.py")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        raise SystemExit(f"there are no figures {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    failed = [name for name in options.names or BENCHMARKS if not record(name, options.peer)]
    if failed:
        say(f"failed: {', '.join(failed)}")
    return int(bool(failed))


def record(name: str, peer: str) -> bool:
    """Run one benchmark and keep its JSON; whether that worked."""
    script, words, compares = BENCHMARKS[name]
    command = [sys.executable, str(HERE / script), *words, *(("--peer", peer) if compares else ())]
    say(f"== {' '.join(command[1:])} (load average {machine()['load_average_before']})")
    started = time.monotonic()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    say(done.stdout)
    say(f"== {time.monotonic() - started:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        return False
    figures = {"command": " ".join(["python", f"benchmarks/{script}", *words]), **json.loads(lines[-1])}
    FIGURES.mkdir(exist_ok=True)
    (FIGURES / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main())
