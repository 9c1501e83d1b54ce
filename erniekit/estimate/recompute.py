"""What recomputation saves and costs, operator by operator, and the cheapest set that fits; no Paddle.

By native kernels an operator that is recomputed spares, a token (H hidden, Q = heads x head_dim,
K = key heads x head_dim, N heads, I channels of the MLP or of an expert, E experts, k of them a token;
numbers in the type of storage, those of N and E in fp32):

| operator | numbers that are not held | FLOPs to compute it again |
|---|---|---|
| norm, rope, activation, o_proj, dispatch, down of an MLP | 0: not held in any case | theirs |
| qkv | Q + 2 K | 2 H (Q + 2 K) |
| core_attention | Q, and N | 4 Q (S + 1) / 2, in samples of S tokens |
| gate_up | 2 I (experts: 2 k I) | 4 H I (experts: 4 k H I) |
| down of experts | k H | 2 k I H |
| router | about 3 E | 2 H E |
| shared_experts | 2 I | 6 H I |
| a whole layer | all but its inputs, 2 H | all of it |

Paddle's own operators hold more (2 H of the norms, Q + K of turned queries and keys, attention's
weights, I of the activation); for those the table is measured in fp32 and only near in bf16.
While the gradient of a recomputed part is computed, what its second run holds is there once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from erniekit.errors import ConfigError
from erniekit.parallel.recomputation import Recomputation

GIB = 2**30
# The search for the cheapest set ends this near to it.
_NEAR = 0.999
SHARE_OF_FREE = 0.9
# Of `erniekit.ops.attention_cpu`, which imports Paddle.
_TILE, _KEEP_WEIGHTS_UP_TO = 128, 1024
# Parts that hold others.
WHOLES = ("block", "attention", "experts")


@dataclass(frozen=True)
class Cost:
    """Of one operator of one layer, a token: bytes that are not held, FLOPs to compute it again."""

    spared: float
    flops: float


def operator_costs(
    config: Any, layer: int, *, width: int, attended: float, native: bool = True
) -> dict[str, Cost]:
    """What each operator of a layer, and its wholes, spare and cost when they are recomputed.

    Args:
        config: numbers of the model.
        width: bytes of a number in storage.
        attended: tokens of the sample that a token belongs to, on average over tokens.
        native: native kernels compute; otherwise Paddle's operators do.
    """
    costs = _attention(config, width, attended, native) | _inner(config, layer, width, native)
    together = {name: _sum(costs, names) for name, names in _members(costs).items()}
    # The layer's two streams are spared, its inputs (the first layer has one) are held.
    own = width * config.hidden_size * (2 - (2 if layer else 1)) + (8 if native else 0)
    together["block"] = Cost(together["block"].spared + own, together["block"].flops)
    return costs | together


def spared_bytes(
    config: Any, chosen: Recomputation, *, width: int, attended: float, native: bool = True
) -> float:
    """Bytes a token that a forward pass does not hold because of `chosen`."""
    return sum(
        cost.spared
        for costs in _chosen_costs(config, chosen, width=width, attended=attended, native=native)
        for cost in costs
    )


def rerun_bytes(
    config: Any, chosen: Recomputation, *, width: int, attended: float, native: bool = True
) -> float:
    """Bytes a token that the second runs of a layer hold at once, of the layer where that is most."""
    per_layer = _chosen_costs(config, chosen, width=width, attended=attended, native=native)
    return max((sum(max(cost.spared, 0.0) for cost in costs) for costs in per_layer), default=0.0)


def recomputed_flops(
    config: Any, chosen: Recomputation, *, attended: float, labelled_share: float = 1.0
) -> float:
    """FLOPs a token that are computed again."""
    per_layer = _chosen_costs(config, chosen, width=2, attended=attended, native=True)
    heads = (1 + config.num_nextn_predict_layers) * labelled_share if chosen.head else 0.0
    return (
        sum(cost.flops for costs in per_layer for cost in costs)
        + 2.0 * heads * config.vocab_size * config.hidden_size
    )


def layer_kinds(config: Any) -> list[int]:
    """A layer of the kind of each block: every layer, and layer 0 for those of multi-token prediction."""
    return [*range(config.num_hidden_layers), *[0] * config.num_nextn_predict_layers]


def rows_of_experts(config: Any) -> float:
    """Rows a token that the experts of a layer train on, at most: k, or what their capacity leaves."""
    if config.moe_capacity is None:
        return config.moe_k
    return min(config.moe_k, config.moe_capacity[0])


def limit_in_bytes(free: int, *, memory_limit_gb: float | None) -> float:
    """Bytes that `recompute: auto` may use where `free` are."""
    return SHARE_OF_FREE * free if memory_limit_gb is None else memory_limit_gb * GIB


def cheapest_that_fits(
    config: Any,
    memory: Callable[[Recomputation], float],
    limit: float,
    *,
    costs: Mapping[int, Mapping[str, Cost]],
    tokens: int,
    start: Recomputation,
) -> Recomputation:
    """The set of operators, and of how many layers, that needs the fewest FLOPs of those that fit.

    Layers beyond what operators can spare are recomputed whole, as few as will do.

    Args:
        memory: estimated bytes at the peak with a recomputation.
        costs: `operator_costs` of every layer.
        tokens: of a micro-batch.
        start: recomputed in any case.

    Raises:
        ConfigError: not even with every layer recomputed does it fit.
    """
    if memory(start) <= limit:
        return start
    kinds = _kinds(costs, tokens)
    wanted = memory(start) - limit
    for _ in range(64):
        counts = _cheapest_cover(kinds, wanted)
        if counts is None:
            break
        chosen = _with(start, config.num_hidden_layers, kinds, counts)
        excess = memory(chosen) - limit
        if excess <= 0:
            return chosen
        wanted += excess
    return _whole_layers(config, memory, limit, kinds, start)


@dataclass(frozen=True)
class _Kind:
    """An operator in layers where it spares and costs the same."""

    operator: str
    layers: tuple[int, ...]
    spared: float
    flops: float


def _kinds(costs: Mapping[int, Mapping[str, Cost]], tokens: int) -> list[_Kind]:
    """What could be recomputed, the cheapest byte first."""
    layers: dict[tuple[str, float, float], list[int]] = {}
    for layer, operators in costs.items():
        for name, cost in operators.items():
            if name not in WHOLES and cost.spared > 0:
                layers.setdefault((name, cost.spared, cost.flops), []).append(layer)
    kinds = [
        _Kind(name, tuple(found), spared * tokens, flops) for (name, spared, flops), found in layers.items()
    ]
    return sorted(kinds, key=lambda kind: kind.flops / kind.spared)


def _cheapest_cover(kinds: list[_Kind], wanted: float) -> list[int] | None:
    """How many layers of each kind spare `wanted` bytes with the fewest FLOPs; None when all do not.

    Branch and bound: what is still wanted costs at least what it would cost if parts of layers could be
    chosen, the cheapest kinds first.
    """
    best: tuple[float, list[int] | None] = (math.inf, None)

    def least(index: int, left: float) -> float:
        """FLOPs of `left` bytes from `kinds[index:]`, in parts of layers; infinite if that is too little."""
        flops = 0.0
        for kind in kinds[index:]:
            taken = min(left, len(kind.layers) * kind.spared)
            flops += taken * kind.flops / kind.spared
            left -= taken
            if left <= 0:
                return flops
        return math.inf

    def search(index: int, left: float, flops: float, counts: list[int]) -> None:
        nonlocal best
        if left <= 0:
            if flops < best[0]:
                best = (flops, counts + [0] * (len(kinds) - index))
            return
        if index == len(kinds) or flops + least(index, left) >= best[0]:
            return
        kind = kinds[index]
        if flops + left * kind.flops / kind.spared >= _NEAR * best[0]:
            return
        for count in range(min(len(kind.layers), math.ceil(left / kind.spared)), -1, -1):
            search(index + 1, left - count * kind.spared, flops + count * kind.flops, [*counts, count])

    search(0, wanted, 0.0, [])
    return best[1]


def _with(start: Recomputation, num_layers: int, kinds: list[_Kind], counts: list[int]) -> Recomputation:
    operators: list[tuple[str, ...]] = [()] * num_layers
    for kind, count in zip(kinds, counts, strict=True):
        for layer in kind.layers[:count]:
            operators[layer] = (*operators[layer], kind.operator)
    return replace(start, operators=tuple(operators))


def _whole_layers(
    config: Any,
    memory: Callable[[Recomputation], float],
    limit: float,
    kinds: list[_Kind],
    start: Recomputation,
) -> Recomputation:
    """Every operator that spares something, and as few layers as will do as a whole."""
    total = config.num_hidden_layers
    everything = _with(start, total, kinds, [len(kind.layers) for kind in kinds])
    counts = range(1, total + 1)
    sets = [replace(everything, operators=(("block",),) * n + everything.operators[n:]) for n in counts]
    sets.append(replace(sets[-1], mtp=config.num_nextn_predict_layers > 0))
    for chosen in sets:
        if (least := memory(chosen)) <= limit:
            return chosen
    raise ConfigError(
        f"recompute: auto: with every layer recomputed the run needs {least / GIB:.2f} GiB, and "
        f"{limit / GIB:.2f} GiB are allowed; lower per_device_train_batch_size (and raise "
        "gradient_accumulation_steps) or max_seq_len, or raise memory_limit_gb"
    )


def _chosen_costs(
    config: Any, chosen: Recomputation, *, width: int, attended: float, native: bool
) -> list[list[Cost]]:
    """Costs of what is recomputed, layer by layer; parts of a whole that is recomputed count once."""
    found = []
    ahead = [("block",)] * config.num_nextn_predict_layers if chosen.mtp else []
    # A part of a model has fewer layers than its numbers say.
    layers = [*range(len(chosen.operators)), *[0] * len(ahead)]
    for layer, operators in zip(layers, [*chosen.operators, *ahead], strict=True):
        if not operators:
            continue
        costs = operator_costs(config, layer, width=width, attended=attended, native=native)
        members = _members(costs)
        within = {name for whole in operators if whole in WHOLES for name in members[whole]}
        found.append(
            [costs[name] for name in operators if name in costs and name not in within - set(WHOLES)]
        )
    return found


def _members(costs: Mapping[str, Cost]) -> dict[str, tuple[str, ...]]:
    experts = ("router", "dispatch", "gate_up", "activation", "down", "shared_experts")
    return {
        "block": tuple(name for name in costs if name not in WHOLES),
        "attention": ("qkv", "rope", "core_attention", "o_proj"),
        "experts": tuple(name for name in experts if name in costs) if "router" in costs else (),
    }


def _sum(costs: Mapping[str, Cost], names: tuple[str, ...]) -> Cost:
    return Cost(sum(costs[name].spared for name in names), sum(costs[name].flops for name in names))


def _attention(config: Any, width: int, attended: float, native: bool) -> dict[str, Cost]:
    hidden, heads = config.hidden_size, config.num_attention_heads
    query, key = heads * config.head_dim, config.num_key_value_heads * config.head_dim
    projections = query + 2 * key
    core: float = width * query + 4 * heads
    if not native:
        # On a CPU Paddle's operators keep fp32, whatever is stored; on a GPU no weights are kept.
        on_cpu = width == 4
        weights = heads * (attended + _TILE) / 2 if on_cpu and attended <= _KEEP_WEIGHTS_UP_TO else 0.0
        # With the turned queries and keys, which attention reads as parts of one tensor.
        core = width * (query + weights + query + key)
    return {
        "norm": Cost(0 if native else 2 * width * hidden, 10.0 * hidden),
        "qkv": Cost(width * projections, 2.0 * hidden * projections),
        "rope": Cost(0, 3.0 * (query + key)),
        "core_attention": Cost(core, 2.0 * query * (attended + 1)),
        "o_proj": Cost(0, 2.0 * query * hidden),
    }


def _inner(config: Any, layer: int, width: int, native: bool) -> dict[str, Cost]:
    """The MLP of a layer, or its experts as a text token takes them."""
    hidden = config.hidden_size
    if not config.is_moe_layer(layer):
        inner = config.intermediate_size
        return {
            "gate_up": Cost(2 * width * inner, 4.0 * hidden * inner),
            "activation": Cost(0 if native else width * inner, 5.0 * inner),
            "down": Cost(0, 2.0 * hidden * inner),
        }
    chosen, experts = rows_of_experts(config), config.moe_num_experts[0]
    inner, rows, shared = (
        chosen * config.moe_intermediate_size[0],
        chosen * hidden,
        config.shared_intermediate_size(),
    )
    costs = {
        "router": Cost(12 * experts, 2.0 * hidden * experts),
        "dispatch": Cost(0 if native else width * rows, 2.0 * rows),
        "gate_up": Cost(2 * width * inner, 4.0 * hidden * inner),
        "activation": Cost(0 if native else width * inner, 5.0 * inner),
        "down": Cost(width * rows, 2.0 * hidden * inner),
    }
    if shared:
        costs["shared_experts"] = Cost((2 if native else 3) * width * shared, 6.0 * hidden * shared)
    return costs
