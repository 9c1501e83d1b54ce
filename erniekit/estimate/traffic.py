"""Bytes that one process sends in a step of a run on several, by axis, and what they do in time.

Counted as rings send: of n bytes over g processes an all-reduce sends 2 n (g-1)/g, a gather or a
reduce-scatter n (g-1)/g, an all-to-all of n bytes n (g-1)/g, a message n. With T tokens of a micro-batch
(of a context rank), H hidden, K = key heads x head_dim, t, c, e the degrees, w bytes of a number:

| axis | a micro-batch, forward (the backward pass sends the same unless said) |
|---|---|
| tensor | two all-reduces of T H w a block; those of the two ends, see below |
| sequence (in place of tensor) | a gather and a reduce-scatter in place of each: the same bytes |
| context | keys and values, 2 T K/t w, to each of the c - 1 others; twice that backward |
| expert | k rows of H for each of a process's tokens, there and back |
| pipeline | T H w for each stage that follows on another rank; back as much |

| axis | a step, of fp32 gradients of n trained numbers |
|---|---|
| data | an all-reduce over the copies; after a reduce-scatter of `sharding`, of the shard |
| sharding 1 | reduce-scatter of gradients; gather of the updated weights |
| sharding 2 | the reduce-scatter in every micro-batch |
| sharding 3 | that, and gathers of the weights in forward and backward passes instead of the one at the end |

The ends: forward an all-reduce after the embedding and three of T fp32 numbers in the loss, backward one
before the head. Recomputing a whole block repeats what its forward pass sends. Losses, norms and counts
are a few numbers and are left out.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from erniekit.estimate.shares import Share, Spread

GRADIENT = 4
_KEYS = ("data", "sharding", "tensor", "sequence", "context", "expert", "pipeline")


class Sent(defaultdict[str, float]):
    """Bytes by axis; an axis that is not there has sent nothing."""

    def __init__(self) -> None:
        super().__init__(float)

    def add(self, other: Mapping[str, float]) -> None:
        """Bytes that are sent besides."""
        for axis, size in other.items():
            self[axis] += size


@dataclass
class Traffic:
    """Bytes sent by axis: in the forward and the backward pass of a micro-batch, and once a step."""

    forward: Sent = field(default_factory=Sent)
    backward: Sent = field(default_factory=Sent)
    step: Sent = field(default_factory=Sent)

    def total(self, micro_batches: int) -> dict[str, float]:
        """Bytes of a step by axis."""
        sums = {
            axis: micro_batches * (self.forward[axis] + self.backward[axis]) + self.step[axis]
            for axis in _KEYS
        }
        return {axis: size for axis, size in sums.items() if size}


def all_reduce(size: float, group: int) -> float:
    """Bytes that each of `group` processes sends to sum `size` bytes."""
    return 2 * size * (group - 1) / group


def gather(size: float, group: int) -> float:
    """The same to gather `size` bytes in all, to reduce and scatter them, or to exchange as many."""
    return size * (group - 1) / group


def stage_traffic(
    share: Share, *, tokens: float, width: int, rerun: frozenset[int] = frozenset(), dispatch: float = 0.0
) -> Traffic:
    """What one stage sends for a micro-batch within its pipeline rank.

    Args:
        tokens: of a micro-batch on one context rank, before sequence parallelism parts them.
        width: bytes of a number.
        rerun: blocks that are recomputed as a whole.
        dispatch: bytes of a number on its way to an expert; 0 for `width`.
    """
    traffic = Traffic()
    spread = share.spread
    for block in share.blocks:
        forward, backward = _block(share.whole, spread, block, tokens, width, dispatch or width)
        traffic.forward.add(forward)
        traffic.backward.add(backward)
        if block in rerun:
            traffic.backward.add(forward)
    stream, axis = tokens * share.hidden_size * width, _tensor_axis(spread)
    half = gather(stream, spread.tensor)
    if share.first:
        traffic.forward[axis] += half if spread.sequence_parallel else 2 * half
        traffic.backward[axis] += half if spread.sequence_parallel else 0
    if share.last:
        traffic.forward[axis] += half if spread.sequence_parallel else 0
        traffic.backward[axis] += half if spread.sequence_parallel else 2 * half
        traffic.forward["tensor"] += all_reduce(3 * 4 * tokens, spread.tensor)
    return traffic


def _block(
    config: Any, spread: Spread, block: int, tokens: float, width: int, dispatch: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Bytes of one block, forward and backward."""
    t, c, e = spread.tensor, spread.context, spread.expert
    stream = tokens * config.hidden_size * width
    tensor = all_reduce(stream, t)
    experts = config.is_moe_layer(block)
    exchanged = experts and e > 1 and (spread.moe_group != "mp" or spread.sequence_parallel)
    whole_experts = experts and spread.expert_tensor == 1 and not config.shared_intermediate_size()
    if not (exchanged and whole_experts):
        tensor *= 2
    keys = 2 * tokens * config.num_key_value_heads * config.head_dim / t * width * (c - 1)
    there = back = 0.0
    if exchanged:
        own = tokens / (t if spread.sequence_parallel else 1)
        numbers = own * config.moe_k * config.hidden_size
        there, back = gather(numbers * dispatch, e), gather(numbers * width, e)
    axis = _tensor_axis(spread)
    forward = {axis: tensor, "context": keys, "expert": there + back}
    return forward, {axis: tensor, "context": 2 * keys, "expert": 2 * back}


def _tensor_axis(spread: Spread) -> str:
    return "sequence" if spread.sequence_parallel else "tensor"


def pipeline_messages(share: Share, *, tokens: float, width: int) -> float:
    """Bytes of what goes from one stage to the next for a micro-batch."""
    return tokens * share.hidden_size * width / share.spread.activation_split


def gradient_traffic(share: Share, *, width: int, micro_batches: int, tied: bool) -> Sent:
    """What a rank sends once a step for its gradients and updated weights.

    Args:
        tied: the embedding is also the head of another pipeline rank.
    """
    spread, trained = share.spread, share.trained
    sent = Sent()
    times = micro_batches if spread.sharding_stage >= 2 else 1
    for numbers, weights, copies, sharding in (
        (trained.dense, share.weights.dense, spread.batch * spread.context, spread.sharding),
        (trained.experts, share.weights.experts, spread.expert_copies, spread.expert_sharding),
    ):
        size = GRADIENT * numbers
        if sharding > 1:
            sent["sharding"] += times * gather(size, sharding)
            gathered = 2 * micro_batches * weights if spread.sharding_stage == 3 else numbers
            sent["sharding"] += gather(width * gathered, sharding)
        sent["data"] += all_reduce(size / sharding, max(1, copies // sharding))
    if spread.sequence_parallel:
        sent["sequence"] += all_reduce(GRADIENT * trained.same, spread.tensor)
    if tied:
        sent["pipeline"] += all_reduce(GRADIENT * share.vocab_size * share.hidden_size, 2)
    return sent
