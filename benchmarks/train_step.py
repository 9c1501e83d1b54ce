"""Times one training step of ErnieKit, and of transformers on PyTorch beside it in the same run.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --peer /path/to/venv-with-torch-and-transformers/bin/python

A step is what a trainer does: forward, backward, gradient norm and clipping, AdamW; fp32, all
parameters, full sequences without padding. Both sides read the same model folder and the same
tokens, and their first losses have to agree, otherwise the times compare different work. The
sides take turns, each round in a process of its own, so that a machine that slows down slows both.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

RESULT = "RESULT "
WARM_UP_STEPS = 2
LOSS_TOLERANCE = 1e-3
LEARNING_RATE = 1e-5
SIDES = ("erniekit", "peer")


@dataclass(frozen=True)
class Work:
    """What is timed: `batch` sequences of `length` tokens, `steps` times after the warm-up."""

    folder: str
    batch: int
    length: int
    steps: int


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when the two sides do not compute the same loss."""
    options = _parser().parse_args(argv)
    work = Work(options.model, options.batch, options.length, options.steps)
    if options.worker:
        result = _time_erniekit(work) if options.worker == "erniekit" else _time_peer(work)
        _say(RESULT + json.dumps(result))
        return 0
    from erniekit.checkpoint.sources import locate_model
    from erniekit.cli.launch import require_paddle

    require_paddle()
    folder = locate_model(model_name_or_path=work.folder, download_hub="huggingface")
    work = Work(str(folder), work.batch, work.length, work.steps)
    interpreters = {"erniekit": sys.executable} | ({"peer": options.peer} if options.peer else {})
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in interpreters}
    load = os.getloadavg()[0]
    for _ in range(options.rounds):
        for side, python in interpreters.items():
            rounds[side].append(_run_worker(python, side, work))
    return _report(work, rounds, load=load)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="model folder, starter, or hub id")
    parser.add_argument("--batch", type=int, default=2, help="sequences of a step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a round, after the warm-up")
    parser.add_argument("--rounds", type=int, default=2, help="how often the sides take turns")
    parser.add_argument("--peer", help="a Python that has torch and transformers")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    return parser


def _run_worker(python: str, side: str, work: Work) -> dict[str, Any]:
    command = [python, __file__, "--worker", side, "--model", work.folder]
    command += ["--batch", str(work.batch), "--length", str(work.length), "--steps", str(work.steps)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(RESULT):
            result: dict[str, Any] = json.loads(line.removeprefix(RESULT))
            return result
    raise SystemExit(f"{side} failed:\n{done.stderr[-2000:]}")


def _report(work: Work, rounds: dict[str, list[dict[str, Any]]], *, load: float) -> int:
    from erniekit.cli.machine import cores, processor

    model, instruction_sets = processor()
    _say(f"machine: {model}, {cores()[1]:g} cores usable, {' '.join(instruction_sets)}")
    _say(f"load average before: {load:.1f} (other work on the machine makes the figures worthless)")
    _say(f"step: {work.batch} x {work.length} tokens, fp32, all parameters; {work.folder}")
    tokens = work.batch * work.length
    medians = {}
    for side, results in rounds.items():
        seconds = [second for result in results for second in result["seconds"]]
        medians[side] = statistics.median(seconds)
        peak = max(result["peak_memory_bytes"] for result in results)
        _say(f"{results[0]['name']}:")
        _say(
            f"  {medians[side]:.3f} s a step (least {min(seconds):.3f}, most {max(seconds):.3f}), "
            f"{tokens / medians[side]:.0f} tokens/s"
        )
        _say(f"  peak memory {peak / 2**30:.2f} GiB, first loss {results[0]['loss']:.6f}")
    if "peer" not in rounds:
        return 0
    _say(f"ratio: ErnieKit takes {medians['erniekit'] / medians['peer']:.2f} times the peer's time")
    first, second = (rounds[side][0]["loss"] for side in SIDES)
    if abs(first - second) > LOSS_TOLERANCE * abs(second):
        _say("the first losses differ: the two sides did not do the same work")
        return 1
    return 0


def token_rows(vocab_size: int, work: Work) -> list[list[int]]:
    """The same tokens on both sides, without either side's generator: [B][T]."""
    return [
        [(7919 * (row * work.length + column) + 104729) % vocab_size for column in range(work.length)]
        for row in range(work.batch)
    ]


def _time_erniekit(work: Work) -> dict[str, Any]:
    from erniekit.cli.launch import require_paddle

    require_paddle()
    import numpy as np
    import paddle

    from erniekit.assemble import build_model, set_device
    from erniekit.config.optimizer import Optimizer
    from erniekit.data.pack import Batch
    from erniekit.optim.build import build_optimizer
    from erniekit.train.objectives import build_objective

    set_device(device="cpu", seed=0)
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    built = build_model(
        Path(work.folder),
        continue_training=True,
        compute_type="fp32",
        fine_tuning="Full",
        freeze=(),
        **dropout,
    )
    optimizer = build_optimizer(list(built.model.named_parameters()), **asdict(Optimizer()))
    objective = build_objective("SFT", loss_subbatch_seqlen=1024, use_sparse_head_and_loss_fn=True)
    ids = np.array(token_rows(built.config.vocab_size, work), dtype=np.int64)
    labels = np.concatenate([ids[:, 1:], np.full((work.batch, 1), -100)], axis=1)
    positions = np.tile(np.arange(work.length, dtype=np.int64), (work.batch, 1))
    attend_from = np.zeros((work.batch, work.length), dtype=np.int32)
    batch = Batch(ids, labels, positions, attend_from, ids.size, [["tokens"]] * work.batch)
    num_labels = int((labels != -100).sum())

    def step() -> float:
        loss, _ = objective(built.model, batch)
        mean = loss / num_labels
        mean.backward()
        optimizer.accumulate_grads()
        optimizer.grad_norm_and_clip()
        optimizer.step(LEARNING_RATE)
        optimizer.zero_grad()
        return float(mean)

    return _timed(step, work, f"ErnieKit, Paddle {paddle.__version__}")


def _time_peer(work: Work) -> dict[str, Any]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(work.folder, torch_dtype=torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    ids = torch.tensor(token_rows(model.config.vocab_size, work))

    def step() -> float:
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return _timed(step, work, f"transformers {transformers.__version__}, torch {torch.__version__}")


def _timed(step: Any, work: Work, name: str) -> dict[str, Any]:
    import resource

    losses = [step() for _ in range(WARM_UP_STEPS)]
    seconds = []
    for _ in range(work.steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"name": name, "loss": losses[0], "seconds": seconds, "peak_memory_bytes": peak}


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
