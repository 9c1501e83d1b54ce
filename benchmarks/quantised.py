"""LoRA over quantised weights on the starter: bytes, peak memory, speed, and what quantisation costs.

    python benchmarks/quantised.py
    python benchmarks/quantised.py --types bf16 nf4 --steps 6

Runs `erniekit train` on examples/configs/starter/sft/run_sft_lora.yaml once for each compute_type, in a
process of its own, and reads its logs: the held-out loss before the first step says what quantisation
costs, the one after the last how much of it the adapter wins back. Its last line is one JSON object.
About a minute a type on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import HERE, machine, say

CONFIG = "examples/configs/starter/sft/run_sft_lora.yaml"
TYPES = ("bf16", "wint8", "wint4", "nf4")


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and print a table and the JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default=CONFIG, help="a run of LoRA that evaluates")
    parser.add_argument("--types", nargs="+", default=TYPES, help="values of compute_type")
    parser.add_argument("--steps", type=int, default=-1, help="steps of training; one epoch without")
    options = parser.parse_args(argv)
    where = machine()
    rows = {word: measure(options.config, word, options.steps) for word in options.types}
    say("| compute_type | weights MB | peak MB | tokens/s | held-out loss before | after |")
    say("|---|---|---|---|---|---|")
    for word, row in rows.items():
        say(
            f"| {word} | {row['weight_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f} | "
            f"{row['tokens_per_s']:.0f} | {row['loss_before']:.3f} | {row['loss_after']:.3f} |"
        )
    say(json.dumps({"types": rows, "machine": where}))
    return 0


def measure(config: str, compute_type: str, steps: int) -> dict[str, Any]:
    """One run of training, and what its logs say."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        command = [sys.executable, "-m", "erniekit", "train", config, f"compute_type={compute_type}"]
        command += [f"output_dir={out}", f"max_steps={steps}"]
        done = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
        timing = _rows(out / "timing.jsonl")
        held_out = [row["eval_loss"] for row in _rows(out / "train_log.jsonl") if "eval_loss" in row]
    return {
        "weight_bytes": weight_bytes(config, compute_type),
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
    from erniekit.quant.schemes import SCHEMES

    model = load_config(HERE.parent / config, (), verb="train").config.model
    folder = locate_model(model_name_or_path=model.model_name_or_path, download_hub=model.download_hub)
    numbers = read_model_config(folder)
    scheme = compute_type if compute_type in SCHEMES else None
    return model_bytes(numbers, compute_type=compute_type if scheme is None else "bf16", scheme=scheme)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
