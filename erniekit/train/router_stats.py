"""Figures of what routers did with the tokens of a step: load, entropy, drops, bias, experts chosen jointly.

N tokens, E experts, k experts a token
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MODALITIES = ("text", "vision")
# Below this many slots an expert a step says nothing about a router.
_ENOUGH = 8
# Collapsed: of the experts beyond the k that every token needs, less than this share is in use.
_COLLAPSED_SHARE = 1 / 8
_DIGITS = 6


@dataclass(frozen=True)
class RouterFigures:
    """Of one router (a layer, a modality) over the tokens of a step.

    load: tokens that each expert was given. max_over_mean: the largest load over the mean one, 1 when even.
    entropy: of the load, 1 when even and 0 when one expert has it all. token_entropy: mean entropy of a
    token's scores, 1 when the router does not care and 0 when it is certain. dropped: share of the slots
    whose expert was full. bias: least and largest correction bias. together: two experts and the share of
    the tokens of the first that also choose the second, the largest such share; None for one expert a token.
    """

    layer: int
    modality: str
    num_tokens: int
    top_k: int
    load: list[int]
    max_over_mean: float
    entropy: float
    token_entropy: float
    dropped: float
    bias: tuple[float, float]
    together: tuple[int, int, float] | None

    def name(self) -> str:
        """As people read it."""
        return f"layer {self.layer}" + (f" ({self.modality})" if self.modality != MODALITIES[0] else "")

    def is_collapsed(self) -> bool:
        """Whether the load is as if few experts were there, as far as so many tokens can tell."""
        num_experts = len(self.load)
        if num_experts <= self.top_k or sum(self.load) < _ENOUGH * num_experts:
            return False
        in_use = num_experts**self.entropy  # as many with an even load have the same entropy
        return in_use < self.top_k + _COLLAPSED_SHARE * (num_experts - self.top_k)


class RouterCount:
    """Adds up the tokens of one router over the micro-batches of a step."""

    def __init__(self, layer: int, modality: int, num_experts: int) -> None:
        self.layer, self.modality, self.num_experts = layer, modality, num_experts
        self.load = np.zeros(num_experts, dtype=np.int64)
        self._demand = np.zeros(num_experts, dtype=np.int64)
        self._pairs = np.zeros([num_experts, num_experts], dtype=np.int64)
        self._num_tokens = self._num_dropped = self._top_k = 0
        self._entropy = 0.0
        self._bias = (0.0, 0.0)

    def add(
        self,
        chosen_Nk: np.ndarray,
        scores_NE: np.ndarray,
        bias_E: np.ndarray,
        *,
        dropped_Nk: np.ndarray | None = None,
    ) -> None:
        """Take in the tokens of a micro-batch, padding left out already."""
        kept_Nk = np.ones(chosen_Nk.shape, bool) if dropped_Nk is None else ~dropped_Nk
        self._num_tokens += len(chosen_Nk)
        self._top_k = chosen_Nk.shape[1]
        self._num_dropped += int((~kept_Nk).sum())
        self.load += np.bincount(chosen_Nk[kept_Nk], minlength=self.num_experts)
        self._demand += np.bincount(chosen_Nk.ravel(), minlength=self.num_experts)
        first, second = chosen_Nk[:, :, None], chosen_Nk[:, None, :]
        pairs = np.bincount((first * self.num_experts + second).ravel(), minlength=self.num_experts**2)
        self._pairs += pairs.reshape(self._pairs.shape)
        shares = scores_NE.astype(np.float64)
        shares = shares / np.maximum(shares.sum(-1, keepdims=True), 1e-30)
        self._entropy += float(-(shares * np.log(np.maximum(shares, 1e-30))).sum())
        self._bias = (float(bias_E.min()), float(bias_E.max()))

    def take_in(self, other: "RouterCount") -> None:
        """Add what was counted elsewhere of the same router, for other tokens."""
        for name in ("load", "_demand", "_pairs", "_num_tokens", "_num_dropped", "_entropy"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self._top_k, self._bias = max(self._top_k, other._top_k), other._bias

    def figures(self) -> RouterFigures:
        """The figures of what was taken in."""
        slots = max(self._num_dropped + int(self.load.sum()), 1)
        mean = self.load.mean()
        return RouterFigures(
            layer=self.layer,
            modality=MODALITIES[self.modality],
            num_tokens=self._num_tokens,
            top_k=self._top_k,
            load=self.load.tolist(),
            max_over_mean=float(self.load.max() / mean) if mean else 1.0,
            entropy=load_entropy(self.load),
            token_entropy=self._entropy / (max(self._num_tokens, 1) * math.log(max(self.num_experts, 2))),
            dropped=self._num_dropped / slots,
            bias=self._bias,
            together=self._together(),
        )

    def _together(self) -> tuple[int, int, float] | None:
        pairs = self._pairs.copy()
        np.fill_diagonal(pairs, 0)
        if not pairs.any():
            return None
        share = pairs / np.maximum(self._demand, 1)[:, None]
        first, second = np.unravel_index(int(share.argmax()), share.shape)
        return int(first), int(second), float(share[first, second])


def load_entropy(load: Sequence[int] | np.ndarray) -> float:
    """Entropy of a load over that of an even one; 1 without any load."""
    counts = np.asarray(load, dtype=np.float64)
    if counts.sum() == 0 or len(counts) < 2:
        return 1.0
    shares = counts[counts > 0] / counts.sum()
    return float(abs(-(shares * np.log(shares)).sum()) / math.log(len(counts)))


def loads_of_processes(figures: Sequence[RouterFigures], processes: int) -> dict[str, list[int]]:
    """By modality the rows that each process computes for its experts, over all layers.

    Process r of n has the experts r E/n to (r + 1) E/n of every layer and modality.
    """
    loads: dict[str, Any] = {}
    for each in figures:
        of_layer = np.array(each.load, dtype=np.int64).reshape([processes, -1]).sum(1)
        loads[each.modality] = loads.get(each.modality, 0) + of_layer
    return {modality: load.tolist() for modality, load in loads.items()}


def largest_share(load: Sequence[int]) -> float:
    """The largest load over the mean one, 1 when even or without any."""
    return max(load) * len(load) / max(sum(load), 1) if sum(load) else 1.0


def summary(figures: Sequence[RouterFigures], processes: int = 1) -> dict[str, Any]:
    """Numbers over all routers, and `routers` with those of each, for the log.

    Args:
        processes: those that the experts are spread over.
    """
    if not figures:
        return {}
    worst = _worst(figures)
    loads = loads_of_processes(figures, processes) if processes > 1 else {}
    spread = {f"expert_processes_{modality}": load for modality, load in loads.items()}
    return spread | {
        "router_max_over_mean": round(worst.max_over_mean, _DIGITS),
        "router_entropy": round(sum(f.entropy for f in figures) / len(figures), _DIGITS),
        "router_token_entropy": round(sum(f.token_entropy for f in figures) / len(figures), _DIGITS),
        "router_dropped": round(sum(f.dropped for f in figures) / len(figures), _DIGITS),
        "router_bias_min": round(min(f.bias[0] for f in figures), _DIGITS),
        "router_bias_max": round(max(f.bias[1] for f in figures), _DIGITS),
        "routers": [_row(f) for f in figures],
    }


def _worst(figures: Iterable[RouterFigures]) -> RouterFigures:
    return max(figures, key=lambda f: f.max_over_mean)


def _row(figures: RouterFigures) -> dict[str, Any]:
    together = figures.together
    return {
        "layer": figures.layer,
        "modality": figures.modality,
        "load": figures.load,
        "max_over_mean": round(figures.max_over_mean, _DIGITS),
        "entropy": round(figures.entropy, _DIGITS),
        "token_entropy": round(figures.token_entropy, _DIGITS),
        "dropped": round(figures.dropped, _DIGITS),
        "bias": [round(value, _DIGITS) for value in figures.bias],
        "together": [*together[:2], round(together[2], _DIGITS)] if together else None,
    }


def line(figures: Sequence[RouterFigures], processes: int = 1) -> str:
    """All routers in one line for the screen, and the processes that the experts are spread over."""
    worst = _worst(figures)
    entropy = sum(f.entropy for f in figures) / len(figures)
    dropped = sum(f.dropped for f in figures) / len(figures)
    low, high = min(f.bias[0] for f in figures), max(f.bias[1] for f in figures)
    loads = loads_of_processes(figures, processes).items() if processes > 1 else ()
    shares = [f"{largest_share(load):.2f} ({modality})" for modality, load in loads]
    spread = f"; of {processes} processes {', '.join(shares)}" if shares else ""
    return (
        f"routers: largest load {worst.max_over_mean:.2f} times the mean ({worst.name()}), entropy "
        f"{entropy:.3f}, dropped {dropped:.1%}, bias {low:+.3f} to {high:+.3f}{spread}"
    )


def table(figures: Sequence[RouterFigures]) -> list[str]:
    """A line for each router, under a head, for `erniekit eval`."""
    head = f"{'router':<18}{'max/mean':>9}{'entropy':>9}{'of tokens':>10}{'dropped':>9}  {'bias':<18}together"
    lines = [head]
    for f in figures:
        bias = f"{f.bias[0]:+.3f} {f.bias[1]:+.3f}"
        together = f"{f.together[0]} with {f.together[1]}: {f.together[2]:.0%}" if f.together else ""
        lines.append(
            f"{f.name():<18}{f.max_over_mean:>9.2f}{f.entropy:>9.3f}{f.token_entropy:>10.3f}"
            f"{f.dropped:>9.1%}  {bias:<18}{together}".rstrip()
        )
    return lines


def collapse_warning(figures: Sequence[RouterFigures]) -> str | None:
    """What to tell about routers that use few experts only, and what to change; None when none does."""
    collapsed = [f for f in figures if f.is_collapsed()]
    if not collapsed:
        return None
    names = ", ".join(f.name() for f in collapsed[:6]) + (", ..." if len(collapsed) > 6 else "")
    unused = sum(f.load.count(0) for f in collapsed)
    return (
        f"routers that collapsed: {names}; the largest load is "
        f"{_worst(collapsed).max_over_mean:.1f} times the mean, and {unused} experts have no token. Set "
        "moe_use_aux_free: true (with moe_use_aux_free_update_coef: 0.001 or more), or raise "
        "moe_aux_loss_lambda (0.01 is much); a lower moe_gate_lr_ratio keeps routers from moving so fast, "
        "and moe_z_loss_lambda: 0.0001 keeps their logits small"
    )
