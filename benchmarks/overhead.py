"""What of a training step is not arithmetic, and how long it takes until there is a first one.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --model starter --batch 4 --length 512

* operators: a step of a model with as many layers and operators, but hardly any numbers: what remains
  is Python, Paddle's dispatch and the calls into the kernels
* data: the next packed batch from the loader, with tokenizing and packing
* logs: one row in both logs and on the screen, at every step
* start: `erniekit train` as a process, until the screen before the first step, and the end of that step

The last line is one JSON object; `share` is the sum of the first three over a real step.
"""

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from pathlib import Path
from statistics import median
from typing import Any

from measure import HERE, Work, find_model, machine, run_worker, say

DATA = HERE.parent / "examples" / "data" / "sft-train.jsonl"
# A model so thin that its arithmetic takes no time; layers stay as they are.
THIN = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "vocab_size": 64,
}
REPEATS = 30


def main(argv: list[str] | None = None) -> int:
    """Measure everything and say it."""
    options = _parser().parse_args(argv)
    where = machine()
    folder = Path(find_model(options.model))
    work = Work(str(folder), options.batch, options.length)
    step = median(run_worker(sys.executable, "step_ours.py", [*work.words(), "--mode", "bf16"])["seconds"])
    with tempfile.TemporaryDirectory() as temporary:
        start = time_start(options, Path(temporary)) if options.start else {}
        parts = time_parts(folder, options, Path(temporary))
    share = sum(parts.values()) / step
    for name, seconds in parts.items():
        say(f"{name}: {seconds * 1e3:.2f} ms, {seconds / step:.2%} of a step")
    say(f"a step of {options.batch} x {options.length} tokens: {step:.3f} s; overhead {share:.2%}")
    for name, seconds in start.items():
        say(f"{name}: {seconds:.2f} s after the start of the process")
    milliseconds = {f"{name}_ms": round(seconds * 1e3, 3) for name, seconds in parts.items()}
    say(
        json.dumps(
            {
                "share": round(share, 5),
                **milliseconds,
                "step_s": round(step, 4),
                **{f"{name.replace(' ', '_')}_s": round(seconds, 2) for name, seconds in start.items()},
                "machine": where,
            }
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--data", default=str(DATA), help="training data, in a format that is guessed")
    parser.add_argument("--no-start", dest="start", action="store_false", help="leave out the start of a run")
    return parser


def time_parts(folder: Path, options: Namespace, scratch: Path) -> dict[str, float]:
    """Seconds of operators, data and logs, in this process."""
    from erniekit.cli.launch import require_paddle

    require_paddle()
    return {
        "operators": _time_operators(folder, scratch),
        "data": _time_data(options, scratch),
        "logs": _time_logs(scratch),
    }


def _time_operators(folder: Path, scratch: Path) -> float:
    from step_ours import build_step

    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    thin = scratch / "thin"
    thin.mkdir()
    ids = {key: 0 for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    (thin / "config.json").write_text(json.dumps({**content, **THIN, **ids}), encoding="utf-8")
    options = Namespace(mode="bf16", kernels="auto", random=True, sample=0, lora_rank=0)
    step = build_step(Work(str(thin), 1, 8), options)
    return _median_of(step)


def _time_data(options: Namespace, scratch: Path) -> float:
    from dataclasses import asdict

    from erniekit.config.load import config_from_dict
    from erniekit.data.pack import BatchShape
    from erniekit.data.pipeline import build_loader, open_train_samples
    from erniekit.train.session import find_model as model_of
    from erniekit.train.session import reader_of

    settings = {"model_name_or_path": options.model, "train_dataset_path": options.data}
    config = config_from_dict(
        {**settings, "max_seq_len": options.length, "output_dir": str(scratch)}, verb="train"
    ).config
    samples = open_train_samples(reader_of(config, model_of(config)), 42, **asdict(config.train_data))
    shape = BatchShape(
        per_device_train_batch_size=options.batch,
        per_device_eval_batch_size=options.batch,
        gradient_accumulation_steps=1,
    )
    sequences = config.sequences
    loader = build_loader(
        samples,
        shape,
        42,
        max_seq_len=sequences.max_seq_len,
        packing=sequences.packing,
        buffer_size=sequences.buffer_size,
        pad_to_max_seqlen=sequences.pad_to_max_seqlen,
        dataloader_num_workers=sequences.dataloader_num_workers,
    )
    try:
        # The mean: a batch that has to tokenize first costs more than the others.
        started = time.perf_counter()
        for _ in range(REPEATS):
            loader.next_step()
        return (time.perf_counter() - started) / REPEATS
    finally:
        loader.close()


def _time_logs(scratch: Path) -> float:
    from dataclasses import asdict

    from erniekit.config.reporting import Reporting
    from erniekit.log import set_up_logging
    from erniekit.train.reporting import Reporter

    settings = {key: value for key, value in asdict(Reporting()).items()}
    for key in ("on_nonfinite", "max_skipped_steps"):
        settings.pop(key)
    set_up_logging()
    row = {"step": 1, "epoch": 0.1, "loss": 2.5, "learning_rate": 1e-5, "grad_norm": 1.25, "tokens": 2048}
    reporter = Reporter(scratch, 1000, 1e9, **settings)
    try:
        # The rows on the screen are timed, and not shown.
        with contextlib.redirect_stderr(io.StringIO()):
            return _median_of(lambda: reporter.log_step(row))
    finally:
        reporter.close()


def _median_of(function: Any) -> float:
    for _ in range(3):
        function()
    durations = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        function()
        durations.append(time.perf_counter() - started)
    return median(durations)


def time_start(options: Namespace, scratch: Path) -> dict[str, float]:
    """Seconds from the start of `erniekit train` to its screen and to the end of its first step."""
    words = [sys.executable, "-m", "erniekit", "train", str(scratch / "run.yaml")]
    settings = {
        "model_name_or_path": options.model,
        "train_dataset_path": options.data,
        "max_seq_len": options.length,
        "per_device_train_batch_size": options.batch,
        "max_steps": 1,
        "save_strategy": "no",
        "output_dir": str(scratch / "run"),
    }
    (scratch / "run.yaml").write_text(json.dumps(settings), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "COLUMNS": "200"}
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "memory estimated at the peak" in line:
            seconds.setdefault("start screen", time.perf_counter() - started)
        if line.startswith("step 1/"):
            seconds.setdefault("end of the first step", time.perf_counter() - started)
    if process.wait() or len(seconds) != 2:
        raise SystemExit("the run did not get to its first step:\n" + "".join(said[-20:]))
    return seconds


if __name__ == "__main__":
    sys.exit(main())
