"""What recomputation saves and costs: predicted and measured memory, and step time, by configuration.

    python benchmarks/recompute.py
    python benchmarks/recompute.py --only dense --steps 5 --rows 8

Every configuration trains a model with random weights on random tokens in a process of its own, which
takes the time of its steps (the median), of the clock and of the processors, which other work on the
machine disturbs less, and the largest resident size that Linux saw of it. The last line is a JSON object
with all figures; the exit status is 1 when a prediction is further off than `--tolerance`.
Losses and gradients do not depend on the configuration, which the table shows by the sum of the losses.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

RESULT = "RESULT "
MODELS: dict[str, dict[str, Any]] = {
    "dense": {"intermediate_size": 1024},
    "experts": {
        "intermediate_size": 1024,
        "moe_num_experts": (8,),
        "moe_intermediate_size": (512,),
        "moe_k": 2,
        "moe_num_shared_experts": 1,
    },
}
MODELS["small experts"] = {
    **MODELS["experts"],
    "moe_num_experts": (32,),
    "moe_intermediate_size": (128,),
    "moe_k": 6,
}
MODELS["capacity"] = {**MODELS["small experts"], "moe_capacity": (1.0, 1.0, 1.0)}
MODELS["ahead"] = {**MODELS["experts"], "num_nextn_predict_layers": 3}
COMMON: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
KEYS: dict[str, Any] = {
    "recompute": "true",
    "recompute_granularity": "full",
    "refined_recompute": None,
    "no_recompute_layers": None,
    "use_recompute_moe": False,
    "use_recompute_mtp": False,
    "use_recompute_loss_fn": False,
}


def selective(operators: str) -> dict[str, Any]:
    """Keys that name operators."""
    return {"recompute_granularity": "selective", "refined_recompute": operators}


# (model, type, keys); auto is given as the share of the activations that may be held.
CONFIGURATIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "nothing": ("dense", "bf16", {"recompute": "false"}),
    "core_attn": ("dense", "bf16", {"recompute_granularity": "core_attn"}),
    "full_attn": ("dense", "bf16", {"recompute_granularity": "full_attn"}),
    "full": ("dense", "bf16", {}),
    "full in 6 of 12 layers": ("dense", "bf16", {"no_recompute_layers": "0-5"}),
    "selective, cheap operators": ("dense", "bf16", {"recompute_granularity": "selective"}),
    "qkv": ("dense", "bf16", selective("qkv:all")),
    "gate_up": ("dense", "bf16", selective("gate_up:all")),
    "gate_up in 6 layers": ("dense", "bf16", selective("gate_up:6")),
    "qkv, core_attention, gate_up": ("dense", "bf16", selective("qkv:all,core_attention:all,gate_up:all")),
    "auto, 0.6 of the activations": ("dense", "bf16", {"recompute": "auto 0.6"}),
    "auto, 0.3 of the activations": ("dense", "bf16", {"recompute": "auto 0.3"}),
    "fp32: nothing": ("dense", "fp32", {"recompute": "false"}),
    "fp32: full": ("dense", "fp32", {}),
    "experts: nothing": ("experts", "bf16", {"recompute": "false"}),
    "experts: full": ("experts", "bf16", {}),
    "experts: core_attn and experts": (
        "experts",
        "bf16",
        {"recompute_granularity": "core_attn", "use_recompute_moe": True},
    ),
    "experts: gate_up, down": ("experts", "bf16", selective("gate_up:all,down:all")),
    "6 of 32 experts: nothing": ("small experts", "bf16", {"recompute": "false"}),
    "6 of 32 experts: full": ("small experts", "bf16", {}),
    "6 of 32 experts, capacity 1: nothing": ("capacity", "bf16", {"recompute": "false"}),
    "experts, 3 blocks ahead: nothing": ("ahead", "bf16", {"recompute": "false"}),
    "experts, 3 blocks ahead: full": ("ahead", "bf16", {}),
}


def main(argv: list[str] | None = None) -> int:
    """Run all configurations; returns 1 when a prediction is further off than the tolerance."""
    options = _parser().parse_args(argv)
    if options.worker:
        sys.stdout.write(RESULT + json.dumps(_measure(options.worker, options)) + "\n")
        return 0
    names = [name for name, (model, _, _) in CONFIGURATIONS.items() if options.only in (None, model)]
    rows = [row for name in names if (row := _run(name, options)) is not None]
    _print_table(rows)
    worst = max((abs(row["error"]) for row in rows), default=1.0)
    summary = {"configurations": len(rows), "worst_error": round(worst, 4), "rows": rows}
    sys.stdout.write(json.dumps(summary) + "\n")
    return int(worst > options.tolerance or len(rows) < len(names))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=MODELS, help="configurations of one model")
    parser.add_argument("--rows", type=int, default=4, help="rows of a micro-batch")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a row, one sample")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed, after one that is not")
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest error that is a success")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser


def _run(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """One configuration in a process of its own."""
    shape = ["--rows", str(options.rows), "--length", str(options.length), "--steps", str(options.steps)]
    command = [sys.executable, __file__, *shape, "--worker", name]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = [line for line in done.stdout.splitlines() if line.startswith(RESULT)]
    if not found:
        sys.stderr.write(f"{name} failed:\n{done.stderr[-2000:]}\n")
        return None
    row = json.loads(found[0].removeprefix(RESULT))
    row["name"], row["error"] = name, row["predicted"] / row["measured"] - 1
    sys.stderr.write(f"{name}: {row['measured'] / 2**20:.0f} MiB, {row['seconds']:.2f} s\n")
    return row


def _print_table(rows: list[dict[str, Any]]) -> None:
    sys.stdout.write(
        "| configuration | predicted MiB | measured MiB | error | step s | CPU s | against nothing | loss |\n"
        "|---|---|---|---|---|---|---|---|\n"
    )
    base: dict[tuple[str, str], float] = {}
    for row in rows:
        model, dtype, _ = CONFIGURATIONS[row["name"]]
        first = base.setdefault((model, dtype), row["cpu_seconds"])
        sys.stdout.write(
            f"| {row['name']} | {row['predicted'] / 2**20:.0f} | {row['measured'] / 2**20:.0f} | "
            f"{row['error']:+.1%} | {row['seconds']:.2f} | {row['cpu_seconds']:.2f} | "
            f"{row['cpu_seconds'] / first - 1:+.1%} | "
            f"{row['loss']:.6f} |\n"
        )


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    from erniekit.cli.launch import require_paddle

    require_paddle()
    from erniekit.assemble import set_device
    from erniekit.config.optimizer import Optimizer
    from erniekit.models.ernie45 import plan
    from erniekit.models.ernie45.config import Ernie45Config
    from erniekit.models.ernie45.model import Ernie45
    from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
    from erniekit.ops.backend import current_backend, kernels_in_words
    from erniekit.optim.build import build_optimizer
    from erniekit.parallel.recompute import apply_recompute
    from erniekit.train.objectives import build_objective
    from erniekit.train.reporting import resident_memory

    model_name, dtype, keys = CONFIGURATIONS[name]
    set_device(device="cpu", seed=0)
    cls = Ernie45Config if model_name == "dense" else Ernie45MoeConfig
    config = cls(**COMMON, **MODELS[model_name])
    model = Ernie45(config, dtype=dtype)
    model.initialise_weights()
    model.train()
    memory = _estimate(config, dtype, options, native=current_backend() == "native")
    chosen = _chosen(config, keys, dtype, options, memory)
    apply_recompute(model, plan, chosen)
    optimizer = build_optimizer(list(model.named_parameters()), **asdict(Optimizer()))
    objective = build_objective(
        "SFT", chosen.head, loss_subbatch_seqlen=1024, use_sparse_head_and_loss_fn=True
    )
    batch = _batch(options, config.vocab_size)
    scale = 0.5 / batch.labels.size
    ahead = [0.1 * scale] * config.num_nextn_predict_layers
    seconds: list[float] = []
    cpu_seconds: list[float] = []
    total = 0.0
    for _ in range(1 + options.steps):
        started, cpu_started = time.perf_counter(), time.process_time()
        for _ in range(2):
            loss, found = objective(model, batch, scale=scale, ahead_scales=ahead)
            loss = sum(found.get("ahead_losses", ()), loss)
            loss.backward()
            optimizer.accumulate_grads()
            total += float(loss)
            del loss
        optimizer.grad_norm_and_clip()
        optimizer.step(1e-4)
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - started)
        cpu_seconds.append(time.process_time() - cpu_started)
    return {
        "predicted": memory(chosen),
        "measured": resident_memory()[1],
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "loss": total,
        "recomputed": chosen.words(),
        "kernels": kernels_in_words(),
    }


def _estimate(config: Any, dtype: str, options: argparse.Namespace, *, native: bool) -> Any:
    """Bytes at the peak as a function of the recomputation."""
    from erniekit.estimate.memory import training_memory

    def memory(chosen: Any) -> float:
        causes = training_memory(
            config,
            num_trained=config.num_parameters(),
            compute_type=dtype,
            rows=options.rows,
            seq_len=options.length,
            attended=options.length,
            logits_rows=1024,
            on_cpu=True,
            native=native,
            recomputation=chosen,
        )
        return sum(causes.values())

    return memory


def _chosen(config: Any, keys: dict[str, Any], dtype: str, options: argparse.Namespace, memory: Any) -> Any:
    from erniekit.estimate.recompute import cheapest_that_fits, operator_costs
    from erniekit.parallel.recomputation import Recomputation, choose_recomputation

    total = config.num_hidden_layers
    word, _, share = str(keys.get("recompute", "true")).partition(" ")
    if word != "auto":
        return choose_recomputation(total, **(KEYS | keys))
    width, none = (2 if dtype == "bf16" else 4), Recomputation(((),) * total)
    most, least = memory(none), memory(Recomputation((("block",),) * total))
    costs = {
        layer: operator_costs(config, layer, width=width, attended=options.length) for layer in range(total)
    }
    limit = least + float(share) * (most - least)
    tokens = options.rows * options.length
    return cheapest_that_fits(config, memory, limit, costs=costs, tokens=tokens, start=none)


def _batch(options: argparse.Namespace, vocab_size: int) -> Any:
    import numpy as np

    from erniekit.data.pack import Batch

    shape = (options.rows, options.length)
    ids = np.random.default_rng(0).integers(0, vocab_size, shape)
    positions = np.tile(np.arange(options.length), (options.rows, 1))
    starts = np.zeros(shape, np.int32)
    return Batch(ids, np.roll(ids, -1, 1), positions, starts, ids.size, [["random"]] * options.rows)


if __name__ == "__main__":
    sys.exit(main())
