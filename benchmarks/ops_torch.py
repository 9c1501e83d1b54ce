"""PyTorch's side of ops.py: the same operators, in fp32 and bf16; run with the peer's interpreter."""

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import tell_result, usable_cores
from operator_cases import chosen, milliseconds


def main() -> None:
    """Measure the chosen cases and say milliseconds by case and type: [forward, forward and backward]."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(usable_cores())
    found: dict[str, dict[str, list[float]]] = {}
    for name, case in chosen(options.only, small=options.small).items():
        found[name] = {}
        for word, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            forward, both = MAKERS[case.kind](case.numbers, dtype)
            times = [milliseconds(forward, options.seconds) if forward else 0.0]
            found[name][word] = [*times, milliseconds(both, options.seconds)]
    tell_result(found)


def _pair(run: Callable[[], Any], leaves: list[Any]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Forward without gradients, and both passes."""

    def forward() -> None:
        with torch.no_grad():
            run()

    seeds: list[Any] = []

    def both() -> None:
        out = run()
        if not seeds:
            seeds.append(torch.randn_like(out))
        out.backward(seeds[0])
        for leaf in leaves:
            leaf.grad = None

    return forward, both


def _leaf(*shape: int, dtype: Any) -> Any:
    return torch.randn(*shape).to(dtype).requires_grad_()


def _linear(n: dict[str, int], dtype: Any) -> Any:
    x = _leaf(n["tokens"], n["inputs"], dtype=dtype)
    weight = _leaf(n["outputs"], n["inputs"], dtype=dtype)
    return _pair(lambda: F.linear(x, weight), [x, weight])


def _attention(n: dict[str, int], dtype: Any) -> Any:
    """Rotation as transformers writes it, and scaled-dot-product attention; packing by a mask."""
    heads, kv, dim = n["heads"], n["kv_heads"], n["head_dim"]
    qkv = _leaf(n["rows"], n["length"], (heads + 2 * kv) * dim, dtype=dtype)
    angles = torch.arange(n["length"])[:, None] / 10000 ** (torch.arange(0, dim, 2) / dim)
    cos, sin = (f(angles).repeat_interleave(2, -1).to(dtype) for f in (torch.cos, torch.sin))
    mask = None
    if n["sample"] < n["length"]:
        own = torch.arange(n["length"]) // n["sample"]
        mask = (own[:, None] == own) & torch.ones(n["length"], n["length"], dtype=torch.bool).tril()

    def turned(x: Any) -> Any:
        other = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * cos + other * sin

    def run() -> Any:
        parts = qkv.view(n["rows"], n["length"], -1, dim).transpose(1, 2).split([heads, kv, kv], 1)
        out = F.scaled_dot_product_attention(
            turned(parts[0]), turned(parts[1]), parts[2], mask, is_causal=mask is None, enable_gqa=True
        )
        return out.transpose(1, 2).reshape(n["rows"], n["length"], -1)

    return _pair(run, [qkv])


def _norm(n: dict[str, int], dtype: Any) -> Any:
    x, delta = (_leaf(n["tokens"], n["width"], dtype=dtype) for _ in range(2))
    weight = _leaf(n["width"], dtype=dtype)
    return _pair(lambda: F.rms_norm(x + delta, (n["width"],), weight, 1e-5), [x, delta, weight])


def _swiglu(n: dict[str, int], dtype: Any) -> Any:
    gate_up = _leaf(n["tokens"], 2 * n["width"], dtype=dtype)

    def run() -> Any:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    return _pair(run, [gate_up])


def _embedding(n: dict[str, int], dtype: Any) -> Any:
    table = _leaf(n["words"], n["width"], dtype=dtype)
    ids = torch.arange(n["tokens"]) * 7919 % n["words"]
    return _pair(lambda: F.embedding(ids, table), [table])


def _loss(n: dict[str, int], dtype: Any) -> Any:
    hidden, weight = _leaf(n["tokens"], n["width"], dtype=dtype), _leaf(n["words"], n["width"], dtype=dtype)
    labels = torch.arange(n["tokens"]) * 7919 % n["words"]
    return _pair(
        lambda: F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum"), [hidden, weight]
    )


def _add(n: dict[str, int], dtype: Any) -> Any:
    x, y = (torch.randn(n["count"]).to(dtype) for _ in range(2))
    return None, lambda: x + y


def _adamw(n: dict[str, int], dtype: Any) -> Any:
    weight = _leaf(n["count"], dtype=dtype)
    weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-5, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()

    return None, update


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
    main()
