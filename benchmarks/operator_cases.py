"""The operators that ops.py measures, at the sizes of a step of the starter; imports nothing but measure."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Case:
    """One operator at one size: what ops.py and ops_torch.py build, and its sizes by name."""

    kind: str
    numbers: dict[str, int]

    def flops(self) -> float:
        """Of the forward pass, where arithmetic is what takes the time; else 0."""
        n = self.numbers
        if self.kind == "linear":
            return 2.0 * n["tokens"] * n["inputs"] * n["outputs"]
        if self.kind == "attention":  # the visible half of each sample
            visible = n["rows"] * n["length"] * (n["sample"] + 1) / 2
            return 4.0 * visible * n["heads"] * n["head_dim"]
        if self.kind == "loss":
            return 2.0 * n["tokens"] * n["width"] * n["words"]
        return 0.0

    def moved(self) -> int:
        """Numbers that a forward and a backward pass have to read or write at least, in units of storage."""
        n = self.numbers
        if self.kind == "adamw":
            # Weight, rest of its master, fp32 moments: 12 bytes read and written; the gradient read twice.
            return n["count"] * 16
        if self.kind == "add":  # two read and one written; the gradient is handed on as it is
            return 3 * n["count"]
        tensors = {"norm": 8, "swiglu": 8, "embedding": 4}[self.kind]
        return tensors * n["tokens"] * n["width"]


def linear(inputs: int, outputs: int) -> Case:
    """A matrix product with its two gradients."""
    return Case("linear", {"tokens": TOKENS, "inputs": inputs, "outputs": outputs})


def attention(rows: int, length: int, sample: int) -> Case:
    """Causal attention inside samples, with rotation."""
    heads = {"heads": 9, "kv_heads": 3, "head_dim": 64}
    return Case("attention", {"rows": rows, "length": length, "sample": sample, **heads})


TOKENS, HIDDEN, INNER, WORDS = 2048, 576, 1536, 49152
CASES: dict[str, Case] = {
    "linear qkv": linear(HIDDEN, 960),
    "linear up and gate": linear(HIDDEN, 2 * INNER),
    "linear down": linear(INNER, HIDDEN),
    "attention 4 x 512": attention(4, 512, 512),
    "attention 1 x 2048": attention(1, 2048, 2048),
    "attention 1 x 2048, samples of 256": attention(1, 2048, 256),
    "residual + RMSNorm": Case("norm", {"tokens": TOKENS, "width": HIDDEN}),
    "SwiGLU": Case("swiglu", {"tokens": TOKENS, "width": INNER}),
    "embedding": Case("embedding", {"tokens": TOKENS, "width": HIDDEN, "words": WORDS}),
    "head + cross-entropy": Case("loss", {"tokens": TOKENS, "width": HIDDEN, "words": WORDS}),
    "sum of two large tensors": Case("add", {"count": 64_000_000}),
    "clipping + AdamW": Case("adamw", {"count": 28_000_000}),
}
SMALL: dict[str, int] = {"tokens": 16, "length": 16, "sample": 16, "words": 64, "count": 1000}


def chosen(words: list[str], *, small: bool) -> dict[str, Case]:
    """The cases whose name contains one of the words; `small` shrinks them for tests."""
    found = {name: case for name, case in CASES.items() if not words or any(word in name for word in words)}
    if not small:
        return found
    small_numbers = {
        name: {word: SMALL.get(word, number) for word, number in case.numbers.items()}
        for name, case in found.items()
    }
    return {name: Case(case.kind, small_numbers[name]) for name, case in found.items()}


def milliseconds(function: Callable[[], Any], seconds: float) -> float:
    """Median time of a call, out of so many seconds of them."""
    for _ in range(2):
        function()
    durations: list[float] = []
    while sum(durations) < seconds or len(durations) < 3:
        started = time.perf_counter()
        function()
        durations.append(time.perf_counter() - started)
    return median(durations) * 1e3
