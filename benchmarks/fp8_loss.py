"""Whether training in FP8 follows training in bf16: the same steps in both, on the same text, for every seed.

    python benchmarks/fp8_loss.py
    python benchmarks/fp8_loss.py --random
    python benchmarks/fp8_loss.py --seeds 1 --steps 50

The starter goes on with pre-training on the sources of Python's standard library, which every machine has; or
with `--random` it begins with it.
A seed decides the order of the documents, so the runs of a seed see the same batches. The curves are compared
by the mean loss of windows of 50 steps: `worst_window` is the largest relative difference of a window, over
all windows of the mean of the seeds, and `held_out` that of the last held-out losses. About a quarter of an
hour on two cores with nothing else to do.

The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from measure import HERE, machine, say, table

MODES: dict[str, list[str]] = {
    "bf16": [],
    "fp8": ["use_fp8=true"],
    "fp8 hybrid": ["use_fp8=true", "fp8_format_type=hybrid"],
    "fp8, SwiGLU's input in bytes": ["use_fp8=true", "fp8_swiglu_input=true"],
}
WINDOW, HELD_OUT = 50, 24
COLUMNS = ["mode", "loss of the last window", "worst window", "held-out"]


def main(argv: list[str] | None = None) -> int:
    """Run all modes for all seeds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--random", action="store_true", help="begin with random weights")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["bf16", "fp8"])
    options = parser.parse_args(argv)
    where = machine()
    curves: dict[str, list[list[float]]] = {mode: [] for mode in options.modes}
    held_out: dict[str, list[float]] = {mode: [] for mode in options.modes}
    with tempfile.TemporaryDirectory() as folder:
        write_text(Path(folder))
        for seed in range(1, options.seeds + 1):
            for mode in options.modes:
                curve, last = train(Path(folder), seed, mode, options.steps, options.random)
                curves[mode].append(curve)
                held_out[mode].append(last)
            result = compare(curves, held_out)
            say(f"{seed} seeds of {options.seeds}\n{table([COLUMNS, *rows(result)])}")
    known = {name: getattr(options, name) for name in ("seeds", "steps", "random")}
    say(json.dumps({**known, "modes": result, "machine": where}))
    return 0


def write_text(folder: Path) -> None:
    """Training and held-out documents: every file of the standard library's first level, in a fixed order."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    texts = [source.read_text(encoding="utf-8", errors="ignore") for source in sources]
    for name, part in (("train", texts[HELD_OUT:]), ("eval", texts[:HELD_OUT])):
        lines = (json.dumps({"text": text}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def train(folder: Path, seed: int, mode: str, steps: int, random: bool) -> tuple[list[float], float]:
    """Loss of every step, and the last held-out loss, of the public command."""
    output = folder / "run"
    words = ["stage=PT", "model_name_or_path=starter", "compute_type=bf16", f"seed={seed}"]
    for name in ("train", "eval"):
        words += [f"{name}_dataset_path={folder / name}.jsonl", f"{name}_dataset_type=erniekit"]
    words += ["max_seq_len=128", "packing=true", "per_device_train_batch_size=1", f"max_steps={steps}"]
    words += ["continue_training=false", "learning_rate=3e-4"] if random else ["learning_rate=2e-5"]
    words += ["warmup_steps=20", "logging_steps=1", "save_strategy=no"]
    words += ["evaluation_strategy=steps", f"eval_steps={steps}", "max_evaluate_steps=20"]
    words += [f"output_dir={output}", "overwrite_output_dir=true", "disable_tqdm=true", *MODES[mode]]
    empty = folder / "empty.yaml"
    empty.write_text("{}\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "erniekit", "train", str(empty), *words],
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
    log = [json.loads(line) for line in (output / "train_log.jsonl").read_text("utf-8").splitlines()]
    curve = [row["loss"] for row in log if "loss" in row]
    assert len(curve) == steps, (len(curve), steps)
    return curve, [row["eval_loss"] for row in log if "eval_loss" in row][-1]


def compare(curves: dict[str, list[list[float]]], held_out: dict[str, list[float]]) -> dict[str, Any]:
    """Each mode beside bf16: the means over the seeds, window by window."""
    plain = windows(curves["bf16"])
    found: dict[str, Any] = {}
    for mode, runs in curves.items():
        own = windows(runs)
        differences = [(a - b) / b for a, b in zip(own, plain, strict=True)]
        last, plain_last = statistics.fmean(held_out[mode]), statistics.fmean(held_out["bf16"])
        found[mode] = {
            "windows": own,
            "worst_window": max(differences, key=abs),
            "held_out_loss": last,
            "held_out": (last - plain_last) / plain_last,
            "held_out_by_seed": held_out[mode],
        }
    return found


def windows(runs: list[list[float]]) -> list[float]:
    """Mean loss of every window, over the seeds."""
    starts = range(0, len(runs[0]), WINDOW)
    return [
        statistics.fmean(statistics.fmean(run[start : start + WINDOW]) for run in runs) for start in starts
    ]


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for every mode."""
    return [
        [mode, f"{row['windows'][-1]:.4f}", f"{row['worst_window']:+.2%}", f"{row['held_out']:+.2%}"]
        for mode, row in result.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
