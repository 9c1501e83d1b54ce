"""What each method of fine-tuning takes and gains on the starter: memory, speed, held-out loss.

    python benchmarks/methods.py
    python benchmarks/methods.py --methods LoRA DoRA --steps 6

Runs `erniekit train` on examples/configs/starter/sft/run_sft_lora.yaml once for each method, in a process
of its own, with all parameters at the learning rate of run_sft.yaml, and reads its logs. Over quantised
weights the held-out loss before the first step says what quantisation costs, the one after the last how
much of it the adapter wins back. Its last line is one JSON object. About 50 seconds a method on two cores.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import HERE, machine, say

CONFIG = "examples/configs/starter/sft/run_sft_lora.yaml"
# Name of a method -> what it changes in the run.
METHODS: dict[str, dict[str, str]] = {
    "Full": {"fine_tuning": "Full", "compute_type": "bf16", "learning_rate": "1e-4"},
    "LoRA": {"fine_tuning": "LoRA", "compute_type": "bf16"},
    "DoRA": {"fine_tuning": "DoRA", "compute_type": "bf16"},
    "PiSSA": {"fine_tuning": "PiSSA", "compute_type": "bf16"},
    "LoRA over wint8": {"fine_tuning": "LoRA", "compute_type": "wint8"},
    "LoRA over wint4": {"fine_tuning": "LoRA", "compute_type": "wint4"},
    "LoRA over nf4": {"fine_tuning": "LoRA", "compute_type": "nf4"},
}


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print a table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=CONFIG, help="a run of LoRA that evaluates")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--steps", type=int, default=20, help="steps of training")
    options = parser.parse_args(argv)
    where = machine()
    rows = {name: measure(options.config, METHODS[name], options.steps) for name in options.methods}
    say("| method | trained | weights MB | peak MB | tokens/s | held-out loss before | after |")
    say("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        say(
            f"| {name} | {row['trained']:,} | {row['weight_bytes'] / 1e6:.0f} | "
            f"{row['peak_bytes'] / 1e6:.0f} | {row['tokens_per_s']:.0f} | {row['loss_before']:.3f} | "
            f"{row['loss_after']:.3f} |"
        )
    say(json.dumps({"steps": options.steps, "methods": rows, "machine": where}))
    return 0


def measure(config: str, changes: dict[str, str], steps: int) -> dict[str, Any]:
    """One run of training, and what its logs say."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        words = [f"{key}={value}" for key, value in changes.items()]
        words += [f"output_dir={out}", f"max_steps={steps}", "evaluation_strategy=epoch"]
        words += ["save_strategy=no", "load_best_model_at_end=false"]
        command = [sys.executable, "-m", "erniekit", "train", config, *words]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
        timing = _rows(out / "timing.jsonl")
        held_out = [row["eval_loss"] for row in _rows(out / "train_log.jsonl") if "eval_loss" in row]
        trained = re.search(r"\| parameters \|.* trained ([\d,]+) \|", (out / "report.md").read_text("utf-8"))
    assert trained is not None and len(held_out) >= 2, "the logs of a run have changed"
    return {
        "trained": int(trained[1].replace(",", "")),
        "weight_bytes": weight_bytes(config, changes["compute_type"]),
        "peak_bytes": max(row["peak_memory_bytes"] for row in timing),
        "tokens_per_s": statistics.median(row["tokens_per_second"] for row in timing),
        "loss_before": held_out[0],
        "loss_after": held_out[-1],
    }


def weight_bytes(config: str, compute_type: str) -> int:
    """Bytes of the model's weights; a quantised one keeps the rest of them in bf16."""
    from erniekit.checkpoint.sources import locate_model
    from erniekit.config.load import load_config
    from erniekit.estimate.state import model_bytes
    from erniekit.models.registry import read_model_config
    from erniekit.quant.schemes import WHILE_READ

    model = load_config(HERE.parent / config, (), verb="train").config.model
    folder = locate_model(model_name_or_path=model.model_name_or_path, download_hub=model.download_hub)
    numbers = read_model_config(folder)
    scheme = compute_type if compute_type in WHILE_READ else None
    return model_bytes(numbers, compute_type=compute_type if scheme is None else "bf16", scheme=scheme)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
