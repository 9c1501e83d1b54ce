"""Times one training step of a mixture of experts: grouped, as a loop, by transformers, and a dense model.

    python benchmarks/moe_step.py
    python benchmarks/moe_step.py --shapes 64-of-6 --peer /path/to/venv-with-torch-and-transformers/bin/python
    python benchmarks/moe_step.py --quick

The step is that of `train_step.py`. The models have random weights, which all sides read from one folder;
first losses have to agree. Every side is a process of its own, and they take turns for several rounds,
but the loop, and a mode of torch that takes over 1.5 times as long as its best one, are measured once:

* `grouped`: ErnieKit, bf16, all experts of a layer in one product over rows sorted by expert
* `loop`: the same with a loop over experts in Python, each with the same native product, and with Paddle's
  operators to bring rows to experts and back
* `dense`: ErnieKit, a dense model whose MLP is as wide as what a token meets, so of equal active parameters
* torch: transformers in bf16 autocast and in pure bf16, with each implementation of experts that runs on
  a CPU. `batched_mm` is not among them: it copies the matrices of every token's experts, 14 GB a layer
  for 2,048 tokens of the first shape.

The last line is one JSON object: `ratio_best`, our tokens/s over those of the fastest mode of torch,
`ratio_same_states`, over those of the fastest that keeps fp32 weights and moments as ours does (pure bf16
rounds every update to bf16), and `ratio_dense_mfu`, our model FLOPs utilisation over that of our dense
model; each the least of the shapes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measure import (
    Measured,
    Work,
    WorkerError,
    add,
    figures_of,
    machine,
    run_worker,
    say,
    table,
    unequal,
    worth_a_run,
)
from peer_environment import find_peer
from train_step import CHUNK, flops_per_token

ATTENTION = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64}
COMMON = {**ATTENTION, "num_hidden_layers": 12, "vocab_size": 16384, "max_position_embeddings": 4096}
WIDER = {**COMMON, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4}
TINY = {**COMMON, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 256}
# Numbers of a shape; the first is the starter upcycled, the second divides experts as the 21B model does.
SHAPES: dict[str, dict[str, Any]] = {
    "8-of-2": {**COMMON, "experts": 8, "top_k": 2, "width": 1536, "shared": 0},
    "64-of-6": {**COMMON, "experts": 64, "top_k": 6, "width": 256, "shared": 2},
    "16-of-4": {**WIDER, "num_hidden_layers": 8, "experts": 16, "top_k": 4, "width": 512, "shared": 1},
    "tiny": {**TINY, "num_hidden_layers": 2, "experts": 4, "top_k": 2, "width": 32, "shared": 1},
}
MEASURED_SHAPES = ("8-of-2", "64-of-6", "16-of-4")
OURS = ("grouped", "loop", "dense")
TORCH = {
    f"{precision}_{experts}": (precision, experts)
    for precision in ("bf16_autocast", "bf16_pure")
    for experts in ("eager", "grouped_mm")
}
SEED = 20


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns 1 when a mode failed or the sides do not compute the same loss."""
    options = _parser().parse_args(argv)
    if options.quick:
        options.rounds, options.steps, options.warm_up, options.gemm_seconds = 1, 1, 1, 0.3
    where, peer = machine(), find_peer(options.peer)
    failures: list[str] = []
    shapes = {}
    for name in options.shapes:
        with tempfile.TemporaryDirectory() as temporary:
            folders = write_models(Path(temporary), SHAPES[name])
            works = {
                kind: Work(str(folder), options.batch, options.length, options.steps, options.warm_up)
                for kind, folder in folders.items()
            }
            sides = measure(name, works, options, peer, failures)
            flops = {kind: flops_per_token(work) for kind, work in works.items()}
            shapes[name] = summarise(name, works["moe"], sides, flops, failures)
    return report(
        shapes, {"batch": options.batch, "length": options.length}, peak(options, peer), where, failures
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=MEASURED_SHAPES)
    parser.add_argument("--batch", type=int, default=4, help="sequences of a step")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--steps", type=int, default=2, help="timed steps of a round")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them")
    parser.add_argument("--rounds", type=int, default=2, help="how often the sides take turns")
    parser.add_argument("--ours", nargs="+", choices=OURS, default=OURS, help="sides of ErnieKit")
    parser.add_argument("--kernels", default="auto", help="kernels of ErnieKit")
    parser.add_argument(
        "--peer",
        default="auto",
        help="a Python with torch and transformers; auto makes one, none does without",
    )
    parser.add_argument("--gemm-seconds", type=float, default=1.0, help="time of each matrix product")
    parser.add_argument("--quick", action="store_true", help="one round of one step: a rough figure")
    return parser


def write_models(folder: Path, shape: Mapping[str, Any]) -> dict[str, Path]:
    """Folders of a mixture of experts and of the dense model of equal active parameters, weights drawn."""
    import numpy as np

    from erniekit.checkpoint.files import write_tensors
    from erniekit.models.ernie45.config import Ernie45Config
    from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
    from erniekit.models.ernie45.weights import memory_shapes, save_layout

    own = ("experts", "top_k", "width", "shared")
    numbers = {name: number for name, number in shape.items() if name not in own}
    active = shape["width"] * (shape["top_k"] + shape["shared"])
    experts: dict[str, Any] = {
        "moe_num_experts": (shape["experts"],),
        "moe_intermediate_size": (shape["width"],),
        "moe_k": shape["top_k"],
        "moe_num_shared_experts": shape["shared"],
        "moe_layer_start_index": (0,),
    }
    configs = {
        "moe": Ernie45MoeConfig(**numbers, **experts, intermediate_size=active),
        "dense": Ernie45Config(**numbers, intermediate_size=active),
    }
    random = np.random.default_rng(SEED)

    def draw(name: str, size: tuple[int, ...]) -> Any:
        if name.endswith("e_score_correction_bias"):
            return np.zeros(size, dtype=np.float32)
        if len(size) < 2:
            return np.ones(size, dtype=np.float32)
        return random.standard_normal(size, dtype=np.float32) * np.float32(shape["hidden_size"] ** -0.5)

    for kind, config in configs.items():
        place = folder / kind
        place.mkdir()
        drawn = ((name, "F32", draw(name, tuple(size))) for name, size in memory_shapes(config).items())
        items = save_layout(drawn, "hf", config)
        write_tensors(place, items, max_shard_bytes=10**9, metadata={"format": "pt"})
        content = json.dumps(config.to_json(dtype="float32"))
        (place / "config.json").write_text(content, encoding="utf-8")
    return {kind: folder / kind for kind in configs}


def measure(
    name: str, works: Mapping[str, Work], options: argparse.Namespace, peer: str | None, failures: list[str]
) -> dict[str, dict[str, Measured]]:
    """All runs of a shape; a mode that fails is left out from then on."""
    ours = {mode: Measured() for mode in options.ours}
    torch = {mode: Measured() for mode in (TORCH if peer else ())}
    for number in range(options.rounds):
        say(f"{name}: round {number + 1} of {options.rounds}")
        for mode in list(ours):
            work = works["dense" if mode == "dense" else "moe"]
            words = [*work.words(), "--mode", "bf16", "--kernels", options.kernels]
            words += ["--experts-in-a-loop"] if mode == "loop" else []
            if mode != "loop" or not ours[mode].results:
                add(ours, mode, sys.executable, "step_ours.py", words, failures)
        for mode in worth_a_run(torch):
            precision, experts = TORCH[mode]
            words = [*works["moe"].words(), "--mode", precision, "--chunk", str(CHUNK), "--experts", experts]
            add(torch, mode, str(peer), "step_torch.py", words, failures)
    return {"ours": ours, "torch": torch}


def peak(options: argparse.Namespace, peer: str | None) -> dict[str, float]:
    """Best rates of a bf16 product in GFLOP/s of every side; empty when they are not measured."""
    rates: dict[str, float] = {}
    sides = {"ours": sys.executable, "onednn": sys.executable, **({"torch": peer} if peer else {})}
    for side, python in sides.items() if options.gemm_seconds else ():
        words = ["--side", side, "--seconds", str(options.gemm_seconds)]
        try:
            rates[side] = max(run_worker(python, "gemm.py", words).values())
        except WorkerError as error:
            say(f"no matrix product by {side}: {str(error).strip().splitlines()[-1]}")
    return rates


def summarise(
    name: str,
    work: Work,
    sides: Mapping[str, dict[str, Measured]],
    flops: Mapping[str, float],
    failures: list[str],
) -> dict[str, Any]:
    """Figures of a shape; adds to `failures` when first losses differ."""
    tokens, ours, torch = work.batch * work.length, sides["ours"], sides["torch"]
    same = {mode: measured for mode, measured in ours.items() if mode != "dense"}
    if same:
        failures += [f"{name}: {problem}" for problem in unequal(same, torch)]
    modes: dict[str, dict[str, dict[str, Any]]] = {
        side: {
            mode: {
                **figures_of(tokens, {mode: measured})[mode],
                "least_and_most_s": [round(seconds, 4) for seconds in measured.spread()],
                "first_loss": round(measured.loss(), 5),
            }
            for mode, measured in measured_of.items()
        }
        for side, measured_of in sides.items()
    }
    grouped = modes["ours"].get("grouped")
    speed = grouped["tokens_per_s"] if grouped else None
    speeds = {mode: figure["tokens_per_s"] for mode, figure in modes["torch"].items()}
    exact = [found for mode, found in speeds.items() if TORCH[mode][0] == "bf16_autocast"]
    others = {
        mode: modes["ours"][mode]["tokens_per_s"] for mode in ("loop", "dense") if mode in modes["ours"]
    }
    per_token = {"flops_per_token": flops["moe"], "dense_flops_per_token": flops["dense"]}
    same_work = speed * flops["moe"] / flops["dense"] if speed else None
    return {
        **modes,
        **per_token,
        "ratio_best": _ratio(speed, max(speeds.values(), default=None)),
        "ratio_same_states": _ratio(speed, max(exact, default=None)),
        "ratio_loop": _ratio(speed, others.get("loop")),
        "ratio_dense_mfu": _ratio(same_work, others.get("dense")),
    }


def _ratio(one: float | None, other: float | None) -> float | None:
    return round(one / other, 4) if one and other else None


def report(
    shapes: Mapping[str, dict[str, Any]],
    size: Mapping[str, int],
    rates: Mapping[str, float],
    where: dict[str, Any],
    failures: list[str],
) -> int:
    """Say everything; returns 1 when something failed."""
    best_rate = max(rates.values(), default=0.0)
    say(f"machine: {where['processor']}, {where['cores']} cores, {' '.join(where['instruction_sets'])}")
    say(f"load average before: {where['load_average_before']} (other work makes the figures worthless)")
    rows = [["shape", "mode", "tokens/s", "s a step (least, most)", "peak GB", "MFU", "first loss"]]
    for name, shape in shapes.items():
        for side, words in (("ours", "ErnieKit"), ("torch", "torch")):
            for mode, found in shape[side].items():
                flops = shape["dense_flops_per_token" if mode == "dense" else "flops_per_token"]
                found["mfu"] = round(found["tokens_per_s"] * flops / (best_rate * 1e9), 4) if rates else None
                least, most = found["least_and_most_s"]
                rows.append(
                    [
                        name,
                        f"{words} {mode}",
                        f"{found['tokens_per_s']:.0f}",
                        f"{found['seconds_per_step']:.3f} ({least:.3f}, {most:.3f})",
                        f"{found['peak_rss_gb']:.2f}",
                        f"{found['mfu']:.1%}" if rates else "-",
                        f"{found['first_loss']:.5f}",
                    ]
                )
    say(table(rows))
    for failure in failures:
        say(failure)
    least = {
        key: min((shape[key] for shape in shapes.values() if shape[key] is not None), default=None)
        for key in ("ratio_best", "ratio_same_states", "ratio_loop", "ratio_dense_mfu")
    }
    numbers = {name: {key: SHAPES[name][key] for key in SHAPES[name]} for name in shapes}
    summary = {**least, "shapes": dict(shapes), "numbers": numbers, **size, "gemm_gflops": dict(rates)}
    say(json.dumps({**summary, "problems": len(failures), "machine": where}))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
