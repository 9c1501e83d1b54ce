"""Whether training in bf16 ends where fp32 ends: the quickstart's task, once in each type for every seed.

    python benchmarks/convergence.py
    python benchmarks/convergence.py --seeds 3

A seed decides the order of the rows, so the two runs of a seed see the same batches. "Within noise"
means that the means of the two types differ by less than twice the standard error which the spread of
the seeds gives that difference. The difference within a seed, which is sharper, is told beside it.

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import HERE, machine, say, table

CONFIG = HERE.parent / "recipes" / "00-quickstart" / "sft.yaml"
TYPES = ("fp32", "bf16")


def main(argv: list[str] | None = None) -> int:
    """Run all pairs; returns 1 when the two types differ beyond noise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args(argv)
    where = machine()
    losses: dict[str, list[float]] = {kind: [] for kind in TYPES}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, options.seeds + 1):
            for kind in TYPES:
                losses[kind].append(held_out_loss(seed, kind, Path(folder) / f"{kind}-{seed}"))
            say(f"seed {seed}: " + ", ".join(f"{kind} {losses[kind][-1]:.4f}" for kind in TYPES))
    result = compare(losses)
    say(table([["held-out loss", *TYPES, "bf16 - fp32"], *rows(losses, result)]))
    say(json.dumps({**result, "losses": losses, "machine": where}))
    return int(not result["within_noise"])


def held_out_loss(seed: int, kind: str, output: Path) -> float:
    """Train and evaluate with the public command; the last held-out loss in nats a token."""
    words = [f"seed={seed}", f"compute_type={kind}", "kernels=native", f"output_dir={output}"]
    words += ["save_strategy=no", "load_best_model_at_end=false", "disable_tqdm=true"]
    done = subprocess.run(
        [sys.executable, "-m", "erniekit", "train", str(CONFIG), *words],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
        cwd=HERE.parent,
        check=False,
    )
    if done.returncode:
        raise SystemExit(
            f"erniekit train {' '.join(words)} ended with {done.returncode}:\n{done.stderr[-2000:]}"
        )
    log = (output / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["eval_loss"] for row in map(json.loads, log) if "eval_loss" in row][-1]


def compare(losses: dict[str, list[float]]) -> dict[str, Any]:
    """Means, spread over the seeds, and the paired difference with its standard error.

    `noise` is the standard error of the difference of the means by the spread of the seeds.
    """
    differences = [b - a for a, b in zip(losses["fp32"], losses["bf16"], strict=True)]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    noise = sum(statistics.variance(losses[kind]) for kind in TYPES) / len(differences)
    return {
        "seeds": len(differences),
        "mean": {kind: statistics.fmean(losses[kind]) for kind in TYPES},
        "spread": {kind: statistics.stdev(losses[kind]) for kind in TYPES},
        "difference": mean,
        "standard_error": error,
        "noise": noise**0.5,
        "within_noise": abs(mean) <= 2 * noise**0.5,
    }


def rows(losses: dict[str, list[float]], result: dict[str, Any]) -> list[list[str]]:
    """A row for every seed and one for their means."""
    found = [
        [f"seed {index + 1}", f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"]
        for index, (a, b) in enumerate(zip(losses["fp32"], losses["bf16"], strict=True))
    ]
    means = [f"{result['mean'][kind]:.4f} +- {result['spread'][kind]:.4f}" for kind in TYPES]
    difference = f"{result['difference']:+.4f} +- {result['standard_error']:.4f}"
    return [*found, ["mean +- spread", *means, difference]]


if __name__ == "__main__":
    sys.exit(main())
