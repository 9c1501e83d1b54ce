"""Seconds of a micro-batch in a stage: arithmetic at a share of the peak, and bytes at a bandwidth."""

from dataclasses import dataclass
from typing import Any

from erniekit.estimate.machines import Machine
from erniekit.estimate.recompute import operator_costs, recomputed_flops
from erniekit.estimate.shares import Share, Spread
from erniekit.estimate.traffic import Traffic
from erniekit.parallel.recomputation import Recomputation

_IN_FP8 = ("gate_up", "down", "shared_experts")


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What a process does in a step.

    compute_type: fp32, bf16, or fp8 (experts are stored in 8 bits; they and MLPs are computed in fp8).
    rows, seq_len: of a micro-batch. attended: tokens of the sample that a token belongs to, on average.
    labelled_share: share of positions with a label. quantised: frozen weights are. offload_optimizer: its
    states are in main memory.
    fp8_dispatch: rows go to experts in 8 bits. away: share of those rows that other processes have; None
    where load is even. router_losses: how many of them look at every token. balances: a bias balances.
    """

    compute_type: str
    rows: int
    seq_len: int
    micro_batches: int
    attended: float
    logits_rows: int
    labelled_share: float = 1.0
    quantised: bool = False
    attention_dropout: float = 0.0
    native: bool = False
    low_precision_moments: bool = False
    offload_optimizer: bool = False
    fp8_dispatch: bool = False
    away: float | None = None
    router_losses: int = 1
    balances: bool = False
    recomputation: Recomputation | None = None

    @property
    def width(self) -> int:
        """Bytes of a number that is passed on."""
        return 4 if self.compute_type == "fp32" else 2


def local_tokens(workload: Workload, spread: Spread) -> float:
    """Tokens of a micro-batch on one context rank."""
    return workload.rows * workload.seq_len / spread.context


def recomputed_of(recomputation: Recomputation | None, share: Share) -> Recomputation | None:
    """What is recomputed of a part of the model."""
    if recomputation is None:
        return None
    operators = tuple(recomputation.operators[block] for block in share.blocks)
    return Recomputation(
        operators, mtp=recomputation.mtp and share.last, head=recomputation.head and share.last
    )


def stage_times(
    share: Share, workload: Workload, machine: Machine, sent: Traffic
) -> tuple[float, float, float]:
    """Seconds of a micro-batch in a stage: forward, gradients of inputs, gradients of weights."""
    spread = share.spread
    tokens = local_tokens(workload, spread) / spread.tensor
    faster = machine.peak_fp8 / machine.peak if workload.compute_type == "fp8" and machine.peak_fp8 else 1.0
    forward = again = scores = 0.0
    for block in share.blocks:
        costs = operator_costs(share.whole, block, width=2, attended=workload.attended)
        inner = sum(costs[name].flops for name in _IN_FP8 if name in costs)
        core = costs["core_attention"].flops
        rest = sum(costs[name].flops for name in ("qkv", "o_proj", "router") if name in costs)
        forward += inner / faster + core + rest
        scores += core
    if share.last:
        forward += 2.0 * share.whole.vocab_size * share.hidden_size * workload.labelled_share
    if share.last and share.num_nextn_predict_layers:
        forward += 2.0 * share.whole.ahead_weights()
    chosen = recomputed_of(workload.recomputation, share)
    if chosen is not None:
        again = recomputed_flops(_Blocks(share), chosen, attended=workload.attended)
    trained = min(1.0, share.trained.total / max(share.weights.total - share.weights.fixed, 1))
    rate = tokens / (machine.peak * machine.efficiency)
    ahead, back = (
        sum(size / speed(machine, spread, axis) for axis, size in direction.items())
        for direction in (sent.forward, sent.backward)
    )
    # Gradients of what enters the scores cost them twice, and no weights are there.
    into = (forward + scores + again) * rate + back
    return forward * rate + ahead, into, trained * (forward - scores) * rate


class _Blocks:
    """The whole model's numbers, with the blocks of a part."""

    def __init__(self, share: Share) -> None:
        self._share = share

    def __getattr__(self, name: str) -> Any:
        return getattr(self._share.whole, name)

    def is_moe_layer(self, layer: int) -> bool:
        return self._share.is_moe_layer(layer)


def speed(machine: Machine, spread: Spread, axis: str) -> float:
    """Bytes a second on an axis: between nodes when its group does not lie in one."""
    inner = spread.tensor * spread.context
    experts = {"mp": spread.tensor, "world": spread.expert}.get(spread.moe_group, inner * spread.expert)
    span = {
        "tensor": spread.tensor,
        "context": inner,
        "sharding": inner * spread.sharding,
        "data": inner * spread.batch,
        "expert": experts,
        "pipeline": spread.world_size,
    }[axis]
    return machine.bandwidth(span)
