"""What differs between parameters: whether they decay, and how fast they learn."""

import re

_BLOCK = re.compile(r"\.layers\.(\d+)\.")


def decays(name: str) -> bool:
    """Weight decay acts on matrices and embeddings, not on biases and norms."""
    return not ("bias" in name or "norm" in name)


def learning_rate_ratios(names: list[str], bound: float) -> dict[str, float]:
    """Share of the learning rate that each parameter gets: linear in depth from `bound` to 1.

    The embedding gets `bound`, block i of n gets bound + (1 - bound) (i + 1) / n, what follows the
    blocks gets 1. With bound = 1 all learn alike.
    """
    blocks = [int(match[1]) for name in names if (match := _BLOCK.search(name))]
    num_blocks = max(blocks, default=-1) + 1
    ratios = {}
    for name in names:
        match = _BLOCK.search(name)
        if match:
            ratios[name] = bound + (1.0 - bound) * (int(match[1]) + 1) / num_blocks
        else:
            ratios[name] = bound if "embed_tokens" in name else 1.0
    return ratios
