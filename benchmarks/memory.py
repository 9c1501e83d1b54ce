"""Compares the estimated peak memory of a training step with the measured one.

    python benchmarks/memory.py
    python benchmarks/memory.py --model 135M --rows 4 --length 512 --sample 256 --compute-type bf16
    python benchmarks/memory.py --model 135M --compute-type bf16 --fine-tuning LoRA --lora-rank 64

Builds a model with random weights, trains two steps on random tokens in a process of its own, and
reads the largest resident size that Linux saw of it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULT = "RESULT "
SIZES: dict[str, dict[str, Any]] = {
    "small": {
        "vocab_size": 8192,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    },
    "135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
    },
}


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; returns 1 when the estimate is further off than `--tolerance`."""
    options = _parser().parse_args(argv)
    if options.worker:
        sys.stdout.write(RESULT + json.dumps(_measure(options)) + "\n")
        return 0
    command = [sys.executable, __file__, "--worker", *(argv if argv is not None else sys.argv[1:])]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not found:
        sys.stderr.write(done.stderr[-2000:])
        return 1
    result = json.loads(found[0].removeprefix(RESULT))
    estimated, measured = sum(result["causes"].values()), result["measured"]
    error = estimated / measured - 1
    causes = ", ".join(f"{cause} {size / 2**20:.0f}" for cause, size in result["causes"].items())
    sys.stdout.write(
        f"{options.model}, {options.micro_batches} micro-batches of {options.rows} x {options.length} tokens "
        f"in samples of {options.sample}, {options.fine_tuning}, {options.compute_type}, "
        f"{result['kernels']}\n"
        f"  estimated {estimated / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB: {error:+.1%}\n"
        f"  {causes}\n"
    )
    return int(abs(error) > options.tolerance)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", choices=SIZES, default="small")
    parser.add_argument("--rows", type=int, default=2, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row")
    parser.add_argument("--sample", type=int, default=512, help="tokens of a sample in the row")
    parser.add_argument("--micro-batches", type=int, default=2, help="micro-batches of a step")
    parser.add_argument("--compute-type", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--kernels", choices=("auto", "native", "paddle"), default="auto")
    parser.add_argument("--fine-tuning", choices=("Full", "LoRA", "DoRA", "PiSSA"), default="Full")
    parser.add_argument("--lora-rank", type=int, default=8)
    parser.add_argument("--lora-dropout", type=float, default=0.0)
    parser.add_argument("--tolerance", type=float, default=0.15, help="largest error that is a success")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    from erniekit.cli.launch import require_paddle

    require_paddle()
    from erniekit.assemble import Adaptation, build_model, set_device
    from erniekit.config.lora import Lora
    from erniekit.config.optimizer import Optimizer
    from erniekit.estimate.memory import training_memory
    from erniekit.models.ernie45.config import Ernie45Config
    from erniekit.ops.backend import current_backend, kernels_in_words
    from erniekit.optim.build import build_optimizer
    from erniekit.train.objectives import build_objective
    from erniekit.train.recompute import adapter_size
    from erniekit.train.reporting import resident_memory

    set_device(device="cpu", seed=0, kernels=options.kernels)
    config = Ernie45Config(**SIZES[options.model], tie_word_embeddings=True)
    keys = asdict(Lora(lora_rank=options.lora_rank, lora_dropout=options.lora_dropout))
    del keys["lora_path"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config.to_json(dtype="float32")))
        built = build_model(
            Path(folder),
            Adaptation(keys),
            continue_training=False,
            compute_type=options.compute_type,
            fine_tuning=options.fine_tuning,
            freeze=(),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    model = built.model
    optimizer = build_optimizer(list(model.named_parameters()), **asdict(Optimizer()))
    objective = build_objective("SFT", loss_subbatch_seqlen=32768, use_sparse_head_and_loss_fn=True)
    batch = _batch(options, config.vocab_size)
    for _ in range(2):
        for _ in range(options.micro_batches):
            loss, _ = objective(model, batch, scale=1.0 / (options.micro_batches * batch.labels.size))
            loss.backward()
            optimizer.accumulate_grads()
            del loss
        optimizer.grad_norm_and_clip()
        optimizer.step(1e-5)
        optimizer.zero_grad()
    causes = training_memory(
        config,
        num_trained=built.num_trained,
        compute_type=options.compute_type,
        rows=options.rows,
        seq_len=options.length,
        attended=options.sample,
        logits_rows=32768,
        on_cpu=True,
        micro_batches=options.micro_batches,
        native=current_backend() == "native",
        adapter=adapter_size(built),
    )
    measured = resident_memory()[1]
    return {"causes": causes, "measured": measured, "kernels": kernels_in_words()}


def _batch(options: argparse.Namespace, vocab_size: int) -> Any:
    import numpy as np

    from erniekit.data.pack import Batch

    shape = (options.rows, options.length)
    ids = np.random.default_rng(0).integers(0, vocab_size, shape)
    starts = np.arange(options.length) // options.sample * options.sample
    positions = np.tile(np.arange(options.length) - starts, (options.rows, 1))
    attend_from = np.tile(starts, (options.rows, 1)).astype(np.int32)
    return Batch(ids, np.roll(ids, -1, 1), positions, attend_from, ids.size, [["random"]] * options.rows)


if __name__ == "__main__":
    sys.exit(main())
