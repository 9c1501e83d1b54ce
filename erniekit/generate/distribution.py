"""What is left of a distribution over the vocabulary, and one draw from it (steps 4 to 8 of sampling).

A vocabulary has 50 to 100 thousand tokens, and sorting, or exponentials in double precision, of all
of them would take longer than a small model does for a token. So passes over all are few and in single
precision; candidates are found by a bound that no token to be kept lies below, and what decides
among them is computed in double precision.

    V vocabulary, C candidates
"""

import numpy as np

# Smaller vocabularies are computed in double precision throughout.
_SMALL = 4096
# Parts of the weights whose sums are looked at before the weights themselves.
_PART = 128
# Weights relative to the largest, above which candidates for top_p are looked for, one after the other.
_FLOORS = (1e-2, 1e-4, 1e-6)
# What is summed in single precision is this far from the truth at most; a bound has to leave room for it.
_ROUNDING = 1e-5


def distribution(
    logits_V: np.ndarray, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that are left and their probabilities, which sum to 1; see `left_over`."""
    tokens, weights = left_over(logits_V, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    weights = weights.astype(np.float64)
    return np.arange(logits_V.size) if tokens is None else tokens, weights / weights.sum()


def left_over(
    logits_V: np.ndarray, *, temperature: float, top_k: int, top_p: float, min_p: float
) -> tuple[np.ndarray | None, np.ndarray]:
    """The tokens that are left, None for all, and a weight for each, proportional to its probability.

    Args:
        logits_V: logits after penalties, not all minus infinity.
        temperature: above 0.
    """
    top = logits_V.max()
    tokens: np.ndarray | None = None
    total: float | None = None
    if 0 < top_k < logits_V.size:
        tokens = _highest(logits_V, top_k)
    elif logits_V.size > _SMALL:
        # Differences of logits are exact enough; (l - top) / t stays in range for every temperature.
        weights_V = np.subtract(logits_V, top, dtype=np.float32)
        weights_V *= np.float32(1.0 / temperature)
        np.exp(weights_V, out=weights_V)
        if top_p < 1.0:
            total = float(weights_V.sum())
            tokens = _reaching(weights_V, top_p * total)
        elif min_p > 0.0:
            tokens = np.flatnonzero(weights_V >= min_p * (1.0 - _ROUNDING))
        else:
            return None, weights_V
    logits = logits_V if tokens is None else logits_V[tokens]
    weights = np.exp((logits.astype(np.float64) - float(top)) / temperature)
    if top_p < 1.0:
        kept = _nucleus(weights, top_p * (weights.sum() if total is None else total))
        tokens, weights = kept if tokens is None else tokens[kept], weights[kept]
    if min_p > 0.0:
        likely = weights >= min_p * weights.max()
        tokens, weights = np.flatnonzero(likely) if tokens is None else tokens[likely], weights[likely]
    return tokens, weights


def draw(weights: np.ndarray, uniform: float) -> int:
    """Index of the entry that `uniform` in [0, 1) falls on, each entry as wide as its weight."""
    start, left = 0, None
    if weights.size > _SMALL:
        edges = np.arange(0, weights.size, _PART)
        sums = np.cumsum(np.add.reduceat(weights, edges), dtype=np.float64)
        target = uniform * sums[-1]
        part = min(int(np.searchsorted(sums, target, side="right")), sums.size - 1)
        start, left = int(edges[part]), target - (sums[part - 1] if part else 0.0)
        weights = weights[start : start + _PART]
    cumulative = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(cumulative, uniform * cumulative[-1] if left is None else left, side="right"))
    if index >= weights.size:  # rounding: the last entry that can be drawn
        index = int(np.flatnonzero(weights)[-1])
    return start + index


def _highest(logits_V: np.ndarray, top_k: int) -> np.ndarray:
    """The `top_k` highest logits, and all that tie with the last of them."""
    candidates = logits_V
    rows = logits_V.size // (8 * top_k)
    found: np.ndarray | None = None
    if logits_V.size > _SMALL and rows > 1:
        # Of columns of a matrix the k highest maxima are k logits: the k-th highest logit is no lower.
        columns = logits_V.size // rows
        maxima = logits_V[: rows * columns].reshape(rows, columns).max(0)
        bound = np.partition(maxima, -top_k)[-top_k]
        found = np.flatnonzero(logits_V >= bound)
        candidates = logits_V[found]
    kth = np.partition(candidates, -top_k)[-top_k]
    kept = np.flatnonzero(candidates >= kth)
    return kept if found is None else found[kept]


def _reaching(weights_V: np.ndarray, mass: float) -> np.ndarray:
    """Tokens among which the most likely ones that reach `mass` are."""
    for floor in _FLOORS:
        tokens = np.flatnonzero(weights_V >= floor)
        if weights_V[tokens].sum() >= mass * (1.0 + _ROUNDING):
            return tokens
    return np.flatnonzero(weights_V)


def _nucleus(weights_C: np.ndarray, mass: float) -> np.ndarray:
    """Indices of the fewest largest entries whose sum reaches `mass`, largest first."""
    order = np.argsort(-weights_C, kind="stable")
    reached = np.cumsum(weights_C[order]) >= mass
    count = int(reached.argmax()) + 1 if reached.any() else order.size
    return order[: max(count, 1)]
