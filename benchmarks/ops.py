"""Each native operator against Paddle's own operators, and PyTorch where there is a peer.

    python benchmarks/ops.py
    python benchmarks/ops.py --only attention --peer none

Sizes are those of a step of the starter with 4 x 512 tokens. Times are medians in milliseconds:
forward, then forward and backward together. Paddle computes in fp32 (its CPU build has no bf16
arithmetic); the others in fp32 and bf16. Rates are those of the native operator in bf16 over both
passes (where there is one, over it): GFLOP/s where there are products, GB/s where there is only memory.

The last line is one JSON object.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from measure import KEEP_MEMORY, machine, run_worker, say, table, tell_result
from operator_cases import Case, chosen, milliseconds
from peer_environment import find_peer

# Column -> (kernels, type).
OURS = {
    "paddle fp32": ("paddle", "fp32"),
    "native fp32": ("native", "fp32"),
    "native bf16": ("native", "bf16"),
}
STORAGE_BYTES = 2


def main(argv: list[str] | None = None) -> int:
    """Measure and say everything."""
    options = _parser().parse_args(argv)
    words = [
        "--only",
        *options.only,
        "--seconds",
        str(options.seconds),
        *(["--small"] if options.small else []),
    ]
    if options.worker:
        kernels, dtype = OURS[options.worker]
        tell_result(measure(kernels, dtype, options))
        return 0
    where = machine()
    peer = find_peer(options.peer)
    times: dict[str, dict[str, list[float]]] = {
        name: {} for name in chosen(options.only, small=options.small)
    }
    for column in OURS:
        for name, pair in run_worker(sys.executable, "ops.py", [*words, "--worker", column]).items():
            times[name][column] = pair
    theirs = run_worker(peer, "ops_torch.py", words, environment=KEEP_MEMORY) if peer else {}
    for name, by_type in theirs.items():
        for dtype, pair in by_type.items():
            times[name][f"torch {dtype}"] = pair
    report(chosen(options.only, small=options.small), times, where)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="*", default=[], help="words in the names of the operators")
    parser.add_argument("--seconds", type=float, default=0.3, help="time of each measurement")
    parser.add_argument("--small", action="store_true", help="sizes that take no time, to see that it runs")
    parser.add_argument(
        "--peer",
        default="auto",
        help="a Python with torch and transformers; auto makes one, none does without",
    )
    parser.add_argument("--worker", choices=OURS, help=argparse.SUPPRESS)
    return parser


def report(cases: dict[str, Case], times: dict[str, dict[str, list[float]]], where: dict[str, Any]) -> None:
    """Say the table and the JSON."""
    columns = list(dict.fromkeys(column for pairs in times.values() for column in pairs))
    rows = [["operator", *columns, "rate", "to Paddle", "to torch"]]
    operators: dict[str, Any] = {}
    for name, pairs in times.items():
        unit, rate = rate_of(cases[name], pairs["native bf16"][1])
        best_torch = min((pair[1] for column, pair in pairs.items() if "torch" in column), default=0.0)
        ratios = [pairs["paddle fp32"][1] / pairs["native bf16"][1], best_torch / pairs["native bf16"][1]]
        shown = [" / ".join(f"{ms:.2f}" for ms in pairs[column] if ms) for column in columns]
        faster = [f"{ratio:.1f}x" if ratio else "-" for ratio in ratios]
        rows.append([name, *shown, f"{rate:.0f} {unit}", *faster])
        operators[name] = {**asdict(cases[name]), "ms": pairs, "rate": round(rate, 1), "unit": unit}
    say(table(rows))
    say(json.dumps({"operators": operators, "machine": where}))


def rate_of(case: Case, ms: float) -> tuple[str, float]:
    """Unit and rate of both passes in bf16; a product's gradients cost twice its forward pass."""
    if case.flops():
        return "GFLOP/s", 3 * case.flops() / ms / 1e6
    return "GB/s", case.moved() * STORAGE_BYTES / ms / 1e6


def measure(kernels: str, dtype: str, options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds by case: forward, and both passes."""
    from erniekit.cli.launch import require_paddle

    require_paddle()
    import paddle

    from erniekit.assemble import set_device

    set_device(device="cpu", seed=0, kernels=kernels)
    found = {}
    for name, case in chosen(options.only, small=options.small).items():
        run, leaves = MAKERS[case.kind](case.numbers, {"fp32": "float32", "bf16": "bfloat16"}[dtype])
        if leaves is None:
            found[name] = [0.0, milliseconds(run, options.seconds)]
            continue
        with paddle.no_grad():
            forward = milliseconds(lambda run=run: run(), options.seconds)
        found[name] = [forward, milliseconds(_both(run, leaves), options.seconds)]
    return found


def _both(run: Callable[[], Any], leaves: list[Any]) -> Callable[[], None]:
    import paddle

    from erniekit.ops import gradients

    seeds: list[Any] = []

    def both() -> None:
        out = run()
        if not seeds:
            seeds.append(paddle.randn(out.shape).astype(out.dtype))
        paddle.autograd.backward([out], [seeds[0]])
        for leaf in leaves:
            gradients.clear(leaf)

    return both


def _leaf(shape: list[int], dtype: str) -> Any:
    import paddle

    drawn = paddle.randn(shape).astype(dtype)
    drawn.stop_gradient = False
    return drawn


def _weight(shape: list[int], dtype: str) -> Any:
    import paddle

    weight = paddle.create_parameter(shape, dtype="float32").astype(dtype).detach()
    weight.stop_gradient = False
    return weight


def _linear(n: dict[str, int], dtype: str) -> Any:
    from erniekit.ops.linear import linear

    x, weight = _leaf([n["tokens"], n["inputs"]], dtype), _weight([n["inputs"], n["outputs"]], dtype)
    return lambda: linear(x, weight), [x, weight]


def _attention(n: dict[str, int], dtype: str) -> Any:
    import paddle

    from erniekit.ops.attention import self_attention, visibility
    from erniekit.ops.backend import current_backend
    from erniekit.ops.rope import rotations

    heads = {"num_heads": n["heads"], "num_kv_heads": n["kv_heads"], "head_dim": n["head_dim"]}
    qkv = _leaf([n["rows"], n["length"], (n["heads"] + 2 * n["kv_heads"]) * n["head_dim"]], dtype)
    columns = paddle.arange(n["length"]).expand([n["rows"], n["length"]])
    starts = columns // n["sample"] * n["sample"]
    visible = visibility(starts.astype("int32"), num_past=0, backend=current_backend())
    turned = n["heads"] + n["kv_heads"] if current_backend() == "cpu" else 1
    turns = rotations(columns - starts, n["head_dim"], 1e4, num_heads=turned)
    return lambda: self_attention(qkv, turns, visible, **heads), [qkv]


def _norm(n: dict[str, int], dtype: str) -> Any:
    from erniekit.ops.norm import add_rms_norm

    x, delta = (_leaf([n["tokens"], n["width"]], dtype) for _ in range(2))
    weight = _weight([n["width"]], dtype)
    return lambda: add_rms_norm(x, delta, weight, 1e-5)[1], [x, delta, weight]


def _swiglu(n: dict[str, int], dtype: str) -> Any:
    from erniekit.ops.swiglu import swiglu

    gate_up = _leaf([n["tokens"], 2 * n["width"]], dtype)
    return lambda: swiglu(gate_up), [gate_up]


def _embedding(n: dict[str, int], dtype: str) -> Any:
    import paddle

    from erniekit.ops.embedding import embedding

    weight = _weight([n["words"], n["width"]], dtype)
    ids = paddle.arange(n["tokens"]) * 7919 % n["words"]
    return lambda: embedding(ids, weight), [weight]


def _loss(n: dict[str, int], dtype: str) -> Any:
    import paddle

    from erniekit.ops.cross_entropy import linear_cross_entropy

    hidden, weight = _leaf([n["tokens"], n["width"]], dtype), _weight([n["words"], n["width"]], dtype)
    labels = paddle.arange(n["tokens"]) * 7919 % n["words"]

    def run() -> Any:
        return linear_cross_entropy(
            hidden, weight, None, labels, transposed=True, chunk_tokens=1024, wanted=paddle.is_grad_enabled()
        )[0]

    return run, [hidden, weight]


def _add(n: dict[str, int], dtype: str) -> Any:
    import paddle

    from erniekit.ops.linear import add

    x, y = (paddle.randn([n["count"]]).astype(dtype) for _ in range(2))
    return lambda: add(x, y), None


def _adamw(n: dict[str, int], dtype: str) -> Any:
    import paddle

    from erniekit.config.optimizer import Optimizer
    from erniekit.optim.build import build_optimizer

    weight = _weight([n["count"]], dtype)
    optimizer = build_optimizer([("weight", weight)], **asdict(Optimizer()))
    gradient = paddle.randn(weight.shape)

    def run() -> None:
        weight.main_grad = gradient
        optimizer.grad_norm_and_clip()
        optimizer.step(1e-5)

    return run, None


MAKERS = {
    "linear": _linear,
    "attention": _attention,
    "norm": _norm,
    "swiglu": _swiglu,
    "embedding": _embedding,
    "loss": _loss,
    "add": _add,
    "adamw": _adamw,
}

if __name__ == "__main__":
    sys.exit(main())
