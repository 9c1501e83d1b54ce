"""What differs between parameters: whether they decay, and how fast they learn."""

import re

_BLOCK = re.compile(r"\.layers\.(\d+)\.")
_GATE = re.compile(r"\.gate\.weight(_1)?$")


def decays(name: str) -> bool:
    """Weight decay acts on matrices and embeddings, not on biases, norms and learned scales."""
    return not ("bias" in name or "norm" in name or name.endswith("weight_scale"))


def learning_rate_ratios(
    names: list[str], bound: float, moe_gate_lr_ratio: float | None = None
) -> dict[str, float]:
    """Share of the learning rate that each parameter gets: linear in depth from `bound` to 1.

    Block i of n gets bound + (1 - bound) i / (n - 1), so the first gets `bound` and the last 1; the
    embedding before them gets `bound`, norm and head after them get 1. With bound = 1 all learn alike.
    The matrices of routers get `moe_gate_lr_ratio` of that, where it is given.
    """
    found = {name: int(match[1]) for name in names if (match := _BLOCK.search(name))}
    last = max(found.values(), default=0)
    ratios = {}
    for name in names:
        if name in found:
            ratios[name] = bound + (1.0 - bound) * (found[name] / last if last else 1.0)
        else:
            ratios[name] = bound if "embed_tokens" in name else 1.0
        if moe_gate_lr_ratio is not None and _GATE.search(name):
            ratios[name] *= moe_gate_lr_ratio
    return ratios
