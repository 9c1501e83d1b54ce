"""How the time and the peak memory of a training step grow: with length, with batch, with the model.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --series length --lengths 512 8192 --peer none

Every point is a process of its own (bf16, fp32 masters and moments). Lengths are measured twice: one
sample that fills the row, and samples of 512 tokens packed into it, which cost attention no more
than before they were packed. Models with random weights are built from the numbers of the presets.
PyTorch is measured at 2,048 tokens, for the comparison of its memory there with ours at 8,192.

The last line is one JSON object.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from measure import KEEP_MEMORY, Work, WorkerError, find_model, machine, run_worker, say, table
from peer_environment import find_peer

SERIES = ("length", "batch", "model", "torch")
LENGTHS = (512, 1024, 2048, 4096, 8192)
BATCHES = (1, 2, 4, 8, 16)
SAMPLE = 512
# Models of random weights by name: a preset, and numbers that replace its own.
HALF = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "55M": {**HALF, "num_hidden_layers": 20, "head_dim": 64, "vocab_size": 49152},
    "ERNIE-4.5-0.3B": {},
}
TORCH = {"bf16_autocast": 0, "bf16_autocast_chunked": 512, "bf16_pure": 0, "bf16_pure_chunked": 512}
TORCH_TOKENS = 2048


@dataclass(frozen=True)
class Point:
    """One step that is measured; `sample` is 0 where a sample fills the row."""

    series: str
    side: str
    model: str
    folder: str
    batch: int
    length: int
    sample: int = 0
    mode: str = "bf16"


def main(argv: list[str] | None = None) -> int:
    """Measure all points; returns 1 when one of ErnieKit's failed."""
    options = _parser().parse_args(argv)
    where = machine()
    peer = find_peer(options.peer) if "torch" in options.series else None
    with tempfile.TemporaryDirectory() as temporary:
        starter = find_model(options.model)
        points = choose_points(options, starter, write_models(Path(temporary)), with_torch=peer is not None)
        rows = []
        for number, point in enumerate(points):
            say(f"{number + 1} of {len(points)}: {words_of(point)}")
            rows.append(measure(point, options, peer))
    return report(rows, where)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--series", nargs="+", choices=SERIES, default=SERIES)
    parser.add_argument("--model", default="starter", help="model of the series of lengths and batches")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a point")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--kernels", default="auto", help="kernels of ErnieKit")
    parser.add_argument(
        "--peer",
        default="auto",
        help="a Python with torch and transformers; auto makes one, none does without",
    )
    return parser


def write_models(folder: Path) -> dict[str, str]:
    """Folders that hold the config.json of the models with random weights."""
    from erniekit.checkpoint.presets import find_preset

    preset = find_preset("ERNIE-4.5-0.3B-PT")
    assert preset is not None, "the preset of 0.3B is gone"
    folders = {}
    for name, changes in MODELS.items():
        place = folder / name
        place.mkdir()
        content = {
            "architectures": ["Ernie4_5ForCausalLM"],
            "model_type": "ernie4_5",
            **preset.config,
            **changes,
        }
        (place / "config.json").write_text(json.dumps(content), encoding="utf-8")
        folders[name] = str(place)
    return folders


def choose_points(
    options: argparse.Namespace, starter: str, models: dict[str, str], *, with_torch: bool
) -> list[Point]:
    """The points of the chosen series, small ones first."""
    points = []
    if "length" in options.series:
        for length in options.lengths:
            points.append(Point("length", "ErnieKit", options.model, starter, 1, length))
            if length > SAMPLE:
                points.append(Point("packed", "ErnieKit", options.model, starter, 1, length, SAMPLE))
    if "batch" in options.series:
        points += [Point("batch", "ErnieKit", options.model, starter, n, SAMPLE) for n in options.batches]
    if "model" in options.series:
        for name, folder in models.items():
            points += [Point("model", "ErnieKit", name, folder, n, SAMPLE) for n in (1, 4)]
    if with_torch:
        for mode in TORCH:
            points.append(Point("torch", "torch", options.model, starter, 1, TORCH_TOKENS, mode=mode))
        if "model" in options.series:
            points.append(
                Point(
                    "torch", "torch", "ERNIE-4.5-0.3B", models["ERNIE-4.5-0.3B"], 4, 512, mode="bf16_autocast"
                )
            )
    return points


def words_of(point: Point) -> str:
    """A point for people."""
    packed = f", samples of {point.sample}" if point.sample else ""
    return f"{point.side} {point.mode}, {point.model}, {point.batch} x {point.length}{packed}"


def measure(point: Point, options: argparse.Namespace, peer: str | None) -> dict[str, Any]:
    """The row of a point: seconds a step, tokens a second, peak memory; or why there is none."""
    work = Work(point.folder, point.batch, point.length, options.steps, options.warm_up)
    words = [*work.words(), *(["--random"] if point.model in MODELS else [])]
    row = {key: value for key, value in asdict(point).items() if key != "folder"}
    try:
        if point.side == "torch":
            mode = point.mode.removesuffix("_chunked")
            words += ["--mode", mode, "--chunk", str(TORCH[point.mode])]
            found = run_worker(str(peer), "step_torch.py", words, environment=KEEP_MEMORY)
        else:
            words += ["--mode", point.mode, "--sample", str(point.sample), "--kernels", options.kernels]
            found = run_worker(sys.executable, "step_ours.py", words)
    except WorkerError as error:
        say(str(error))
        return {**row, "error": str(error).strip().splitlines()[-1]}
    seconds = median(found["seconds"])
    return {
        **row,
        "seconds_per_step": round(seconds, 4),
        "tokens_per_s": round(point.batch * point.length / seconds, 1),
        "peak_rss_gb": round(found["peak_rss_bytes"] / 1e9, 3),
    }


def report(rows: list[dict[str, Any]], where: dict[str, Any]) -> int:
    """Say the table and the JSON; returns 1 when a point of ErnieKit failed."""
    lines = [["series", "model", "rows x tokens", "samples of", "tokens/s", "s a step", "peak GB"]]
    for row in rows:
        shape = f"{row['batch']} x {row['length']}"
        name = row["model"] if row["side"] == "ErnieKit" else f"{row['model']}, torch {row['mode']}"
        figures = [row.get(key, "failed") for key in ("tokens_per_s", "seconds_per_step", "peak_rss_gb")]
        lines.append([row["series"], name, shape, str(row["sample"] or row["length"]), *map(str, figures)])
    say(table(lines))
    comparison = compare(rows)
    if comparison:
        say(
            f"{comparison['tokens']:,} tokens packed in one row: {comparison['peak_rss_gb']:.2f} GB; "
            f"torch with {TORCH_TOKENS:,}: {comparison['torch_peak_rss_gb']:.2f} GB"
        )
    say(json.dumps({"points": rows, "packed_below_torch": comparison, "machine": where}))
    return int(any("error" in row for row in rows if row["side"] == "ErnieKit"))


def compare(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Our longest packed row beside PyTorch's thriftiest mode with fp32 states at 2,048 tokens."""
    good = [row for row in rows if "error" not in row]
    ours = [row for row in good if row["series"] == "packed"]
    theirs = [row for row in good if row["side"] == "torch" and row["mode"].startswith("bf16_autocast")]
    theirs = [row for row in theirs if row["length"] == TORCH_TOKENS]
    if not ours or not theirs:
        return None
    longest = max(ours, key=lambda row: row["length"])
    least = min(theirs, key=lambda row: row["peak_rss_gb"])
    return {
        "tokens": longest["length"],
        "peak_rss_gb": longest["peak_rss_gb"],
        "torch_mode": least["mode"],
        "torch_tokens": TORCH_TOKENS,
        "torch_peak_rss_gb": least["peak_rss_gb"],
        "holds": longest["peak_rss_gb"] < least["peak_rss_gb"],
    }


if __name__ == "__main__":
    sys.exit(main())
