"""Bytes that one process sends in a step of a run on several, by axis, and what they do in time.

Counted as rings send: of n bytes over g processes an all-reduce sends 2 n (g-1)/g, a gather or a
reduce-scatter n (g-1)/g, an all-to-all of n bytes n (g-1)/g, a message n. With T tokens of a micro-batch
(of a context rank), H hidden, K = key heads x head_dim, t, c, e the degrees, w bytes of a number:

| axis | a micro-batch, forward (the backward pass sends the same unless said) |
|---|---|
| tensor | two all-reduces of T H w a block, three with shared experts beside split ones; those of the ends |
| tensor, with sequence parallelism | a gather and a reduce-scatter in place of each: the same bytes |
| context | queries, keys and values of others' heads there, results back: all-to-alls of own columns |
| expert | k rows of H for each of a process's tokens, there and back; the number of rows of each expert |
| pipeline | T H w for each stage that follows on another rank; back as much |

| axis | a step, of fp32 gradients of n trained numbers |
|---|---|
| data | an all-reduce over the copies; after a reduce-scatter of `sharding`, of the shard |
| sharding 1 | reduce-scatter of gradients; gather of the updated weights |
| sharding 2 | the reduce-scatter in every micro-batch |
| sharding 3 | that, and gathers of weights in place of the one at the end, see below |
| tensor | an all-reduce of gradients of what sees a part of the tokens or of the channels |

The ends: forward an all-reduce after the embedding and three fp32 numbers of each labelled position in the
loss, backward one of the labelled rows before the head. With sequence parallelism the embedding's is a
reduce-scatter, and the last norm's result is gathered. Routers' records are gathered where rows are split,
and weights of experts have their gradients summed where experts are. Recomputing a whole block repeats what
its forward pass sends. With gradients go 4 bytes for each of them that say whether there is one.

Ranges of parameters are padded to equal lengths. Sharding 3 gathers a block before each of its passes, and
once a micro-batch what is in no block; routers and adapters stay whole.

All of this is what processes send, to the byte, where tokens, labels and rows of experts are the run's:
tests compare. Losses, norms and figures of routers travel as objects of Python, a few numbers a step.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from erniekit.estimate.shares import Share, Spread
from erniekit.parallel.recomputation import Recomputation

GRADIENT, FLAG = 4, 4
_KEYS = ("data", "sharding", "tensor", "context", "expert", "pipeline")
# Name of a group of processes (`parallel/mesh.py`) -> the axes whose bytes it sends.
GROUPS = {
    "replicas": ("data", "sharding"),
    "expert_replicas": ("data", "sharding"),
    "batch": ("data", "sharding"),
    "data": ("data", "sharding"),
    "sharding": ("data", "sharding"),
    "shard_copies": ("data", "sharding"),
    "expert_shards": ("data", "sharding"),
    "expert_shard_copies": ("data", "sharding"),
    "tensor": ("tensor",),
    "tensor_sums": ("tensor",),
    "context": ("context",),
    "expert": ("expert",),
    "pipeline": ("pipeline",),
    "shared_embedding": ("pipeline",),
}


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


@dataclass(frozen=True, kw_only=True)
class Passing:
    """What of a micro-batch is passed on.

    tokens: on one context rank, before sequence parallelism parts them. labelled: positions with a label.
    width: bytes of a number. fp8_dispatch: on their way to an expert rows are bytes and fp32 scales of 128.
    away: share of the rows of experts that are another process's; None where load is even.
    router_losses: how many losses of routers look at every token.
    """

    tokens: float
    labelled: float
    width: int
    fp8_dispatch: bool = False
    away: float | None = None
    router_losses: int = 1


def stage_traffic(share: Share, passing: Passing, recomputation: Recomputation | None = None) -> Traffic:
    """What one stage sends for a micro-batch within its pipeline rank."""
    traffic = Traffic()
    whole = share.whole
    for block in share.blocks:
        again = () if recomputation is None else recomputation.operators[block]
        _block(traffic, share, passing, whole.is_moe_layer(block), again)
    if share.first:
        _embed(traffic, share, passing)
        if not share.trains_embedding:
            # The first block has no gradient to give.
            traffic.backward["tensor"] -= _entrance(share, passing)
    ahead = recomputation is not None and recomputation.mtp
    for _ in range(share.num_nextn_predict_layers):
        _embed(traffic, share, passing)
        _block(traffic, share, passing, False, ("block",) if ahead else ())
    for _ in range((1 + share.num_nextn_predict_layers) * share.last):
        _head(traffic, share, passing, recomputation is not None and recomputation.head)
    return traffic


def _entrance(share: Share, passing: Passing) -> float:
    """Bytes of the gradient of what goes into a column matrix."""
    size, group = passing.tokens * share.hidden_size * passing.width, share.spread.tensor
    return gather(size, group) if share.spread.sequence_parallel else all_reduce(size, group)


def _embed(traffic: Traffic, share: Share, passing: Passing) -> None:
    size, group = passing.tokens * share.hidden_size * passing.width, share.spread.tensor
    if share.spread.sequence_parallel:
        traffic.forward["tensor"] += gather(size, group)
        traffic.backward["tensor"] += gather(size, group) * share.trains_embedding
    else:
        traffic.forward["tensor"] += all_reduce(size, group)


def _head(traffic: Traffic, share: Share, passing: Passing, again: bool) -> None:
    group, row = share.spread.tensor, share.hidden_size * passing.width
    loss = all_reduce(3 * 4 * passing.labelled, group)
    traffic.forward["tensor"] += loss
    traffic.backward["tensor"] += all_reduce(passing.labelled * row, group) + loss * again
    if share.spread.sequence_parallel:
        traffic.forward["tensor"] += gather(passing.tokens * row, group)


def _block(
    traffic: Traffic, share: Share, passing: Passing, has_experts: bool, again: Collection[str]
) -> None:
    """Add what one block sends, forward and backward."""
    spread, numbers = share.spread, share.whole
    stream = all_reduce(passing.tokens * numbers.hidden_size * passing.width, spread.tensor)
    attention, forward, backward = Sent(), Sent(), Sent()
    attention["tensor"] = stream
    attention["context"] = _heads(numbers, spread, passing)
    forward.add(attention)
    backward.add(attention)
    if not has_experts or numbers.shared_intermediate_size():
        forward["tensor"] += stream
        backward["tensor"] += stream
    if has_experts:
        for total, part in zip((forward, backward), _experts(numbers, spread, passing), strict=True):
            total.add(part)
    traffic.forward.add(forward)
    traffic.backward.add(backward)
    if "block" in again:
        traffic.backward.add(forward)
    elif "attention" in again:
        traffic.backward.add(attention)
    elif "core_attention" in again:
        traffic.backward["context"] += attention["context"]


def _heads(numbers: Any, spread: Spread, passing: Passing) -> float:
    """Bytes of a context rank's columns of others' heads, and of their results for others' columns."""
    ranks = spread.context
    if ranks == 1:
        return 0.0
    queries = numbers.num_attention_heads / spread.tensor / ranks
    keys = max(1, numbers.num_key_value_heads / spread.tensor / ranks)
    return (ranks - 1) * passing.tokens * (2 * queries + 2 * keys) * numbers.head_dim * passing.width


def _experts(numbers: Any, spread: Spread, passing: Passing) -> tuple[Sent, Sent]:
    """Bytes of a layer of experts without those that are shared."""
    t, c, e = spread.tensor, spread.context, spread.expert
    experts, chosen = numbers.moe_num_experts[0], numbers.moe_k
    own = passing.tokens / spread.activation_split
    forward, backward = Sent(), Sent()
    if e > 1 and (spread.moe_group != "mp" or spread.sequence_parallel):
        away = (e - 1) / e if passing.away is None else passing.away
        hidden, rows = numbers.hidden_size, away * own * chosen
        there = hidden + 4 * ceil(hidden / 128) if passing.fp8_dispatch else hidden * passing.width
        forward["expert"] = rows * (there + hidden * passing.width)
        forward["expert"] += (e - 1) * 8 * experts
        backward["expert"] = 2 * rows * hidden * passing.width
    for axis, group in (("expert", e * (spread.moe_group == "mp")), ("tensor", spread.expert_tensor)):
        if group > 1 and not spread.sequence_parallel:
            stream = passing.tokens * numbers.hidden_size * passing.width
            forward[axis] += all_reduce(stream, group)
            backward[axis] += all_reduce(stream + passing.tokens * chosen * 4, group)
    record = 8 * experts + 12 * chosen
    if spread.sequence_parallel:
        forward["tensor"] += (t - 1) * own * record
    forward["context"] += (c - 1) * passing.tokens * record
    backward["context"] += (c - 1) * passing.tokens * passing.router_losses * 4 * experts
    return forward, backward


def pipeline_messages(share: Share, *, tokens: float, width: int) -> float:
    """Bytes of what goes from one stage to the next for a micro-batch."""
    return tokens * share.hidden_size * width / share.spread.activation_split


def gradient_traffic(
    share: Share, *, width: int, micro_batches: int, tied: bool, balances: bool = False
) -> Sent:
    """What a rank sends once a step for its gradients and updated weights.

    Args:
        tied: the embedding is also that of another pipeline rank.
        balances: routers are balanced by a bias.
    """
    spread, sent = share.spread, Sent()
    times = micro_batches if spread.sharding_stage >= 2 else 1
    for part in share.parts:
        copies = spread.expert_copies if part.is_expert else spread.batch * spread.context
        shards = 1
        if spread.sharding > 1:
            shards = spread.expert_sharding if part.is_expert else spread.sharding
        length = ceil(part.numbers / shards)
        one = (shards - 1) * length * (4 if part.is_wide else width)
        parted = spread.sharding_stage == 3 and not part.keeps_whole
        if parted:
            sent["sharding"] += one * micro_batches * (1 + part.in_block)
        if not part.is_trained:
            continue
        gradient = GRADIENT * length + FLAG
        sent["tensor"] += times * all_reduce(shards * gradient, spread.tensor if part.partial else 1)
        sent["sharding"] += times * (shards - 1) * gradient + one * (not parted)
        sent["data"] += all_reduce(gradient, copies // shards)
    routers = sum(map(share.is_moe_layer, range(len(share.blocks))))
    if routers:
        experts = share.whole.moe_num_experts
        numbers = routers * (len(experts) + balances * experts[0])
        sent["data"] += all_reduce(8 * numbers, spread.batch)
    if tied and share.trains_embedding:
        sent["pipeline"] += all_reduce(GRADIENT * share.vocab_size * share.hidden_size, 2)
    return sent


def compared(
    measured: Mapping[tuple[str, str], int], predicted: Mapping[str, float]
) -> dict[str, tuple[int, float]]:
    """Bytes that were sent, by (name of the group, operation), beside the prediction, by axis.

    Axes that one group serves stand together.
    """
    found: dict[str, tuple[int, float]] = {}
    for axes in dict.fromkeys(GROUPS.values()):
        sent = sum(size for (group, _), size in measured.items() if GROUPS.get(group) == axes)
        expected = sum(predicted.get(axis, 0.0) for axis in axes)
        if sent or expected:
            found[" and ".join(axes)] = sent, expected
    return found
