"""What recomputation spares and costs: by hand, against a search through all sets, and what does not fit."""

import math
from dataclasses import replace
from itertools import product
from types import SimpleNamespace

import pytest

from erniekit.errors import ConfigError
from erniekit.estimate import recompute
from erniekit.estimate.recompute import (
    GIB,
    cheapest_that_fits,
    layer_kinds,
    limit_in_bytes,
    operator_costs,
    recomputed_flops,
    rerun_bytes,
    spared_bytes,
)
from erniekit.parallel.recomputation import Recomputation
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

# hidden 32, inner 48, 2 layers, 4 heads over 2 of 16: Q = 64, K = 32.
DENSE = tiny_config()
# Layers 1 and 2 have experts: 4 of width 24, a token takes 2; shared ones of 48.
MOE = tiny_moe_config()
NONE = Recomputation(((), ()))


def test_dense_operators_by_hand() -> None:
    costs = operator_costs(DENSE, 1, width=2, attended=9)
    assert costs["qkv"].spared == 2 * 128 and costs["qkv"].flops == 2 * 32 * 128
    assert costs["core_attention"].spared == 2 * 64 + 4 * 4
    assert costs["core_attention"].flops == 4 * 64 * 5
    assert costs["gate_up"].spared == 2 * 96 and costs["gate_up"].flops == 2 * 32 * 96
    for name in ("norm", "rope", "o_proj", "activation", "down"):
        assert costs[name].spared == 0
    # Everything but the two inputs: the streams are spared, so what is left are two factors a token.
    assert costs["block"].spared == 256 + 144 + 192 + 8
    assert costs["attention"].spared == 256 + 144
    assert costs["experts"].spared == 0
    # The first layer has one input.
    assert operator_costs(DENSE, 0, width=2, attended=9)["block"].spared == 256 + 144 + 192 + 8 + 64


def test_experts_by_hand() -> None:
    costs = operator_costs(MOE, 1, width=4, attended=9)
    assert costs["gate_up"].spared == 4 * 2 * 2 * 24
    assert costs["down"].spared == 4 * 2 * 32
    assert costs["router"].spared == 12 * 4
    assert costs["shared_experts"].spared == 4 * 2 * 48 and costs["shared_experts"].flops == 6 * 32 * 48
    assert costs["experts"].spared == 384 + 256 + 48 + 384


def test_paddles_operators_hold_more() -> None:
    native = operator_costs(DENSE, 1, width=4, attended=9)
    paddle = operator_costs(DENSE, 1, width=4, attended=9, native=False)
    assert paddle["norm"].spared == 4 * 64 and paddle["activation"].spared == 4 * 48
    assert paddle["core_attention"].spared > native["core_attention"].spared
    # Long samples: the weights of attention are not kept.
    assert operator_costs(DENSE, 1, width=4, attended=2048, native=False)["core_attention"].spared == 4 * 160


def test_parts_of_a_whole_count_once() -> None:
    both = Recomputation((("block", "qkv"), ()))
    alone = Recomputation((("block",), ()))
    for of in (
        lambda chosen: spared_bytes(DENSE, chosen, width=2, attended=9),
        lambda chosen: rerun_bytes(DENSE, chosen, width=2, attended=9),
        lambda chosen: recomputed_flops(DENSE, chosen, attended=9),
    ):
        assert of(both) == of(alone) > 0
        assert of(NONE) == 0
    head = Recomputation(((), ()), head=True)
    assert recomputed_flops(DENSE, head, attended=9, labelled_share=0.5) == DENSE.vocab_size * 32


def test_multi_token_prediction_by_hand() -> None:
    """Two blocks of the kind of layer 0, as a whole."""
    config = tiny_moe_config(num_nextn_predict_layers=2)
    assert not config.is_moe_layer(0) and layer_kinds(config) == [0, 1, 2, 0, 0]
    blocks, layer = Recomputation(((),) * 3, mtp=True), Recomputation((("block",), (), ()))
    assert recomputed_flops(config, blocks, attended=9) == 2 * recomputed_flops(config, layer, attended=9)
    spared = [spared_bytes(config, chosen, width=2, attended=9) for chosen in (blocks, layer)]
    assert spared[0] == 2 * spared[1] > 0
    heads = Recomputation(((),) * 3, head=True)
    assert recomputed_flops(config, heads, attended=9) == 2 * 3 * config.vocab_size * 32


def test_limits() -> None:
    assert limit_in_bytes(100, memory_limit_gb=None) == 90
    assert limit_in_bytes(0, memory_limit_gb=1.5) == 1.5 * GIB


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.4, 0.6, 0.8, 0.95])
def test_the_cheapest_set_is_that_of_a_search_through_all(config, share: float) -> None:
    layers = range(config.num_hidden_layers)
    costs = {layer: operator_costs(config, layer, width=2, attended=9) for layer in layers}
    useful = [
        [
            name
            for name, cost in costs[layer].items()
            if cost.spared and name not in ("block", "attention", "experts")
        ]
        for layer in layers
    ]
    everything = sum(costs[layer][name].spared for layer in layers for name in useful[layer])
    none = Recomputation(((),) * len(layers))

    def memory(chosen: Recomputation) -> float:
        return 1000.0 + everything - spared_bytes(config, chosen, width=2, attended=9)

    def flops(chosen: Recomputation) -> float:
        return recomputed_flops(config, chosen, attended=9)

    limit = 1000.0 + everything * (1 - share)
    found = cheapest_that_fits(config, memory, limit, costs=costs, tokens=1, start=none)
    assert memory(found) <= limit
    sets = [
        [
            tuple(n for n, taken in zip(names, bits, strict=True) if taken)
            for bits in product((0, 1), repeat=len(names))
        ]
        for names in useful
    ]
    best = min(flops(chosen) for chosen in map(Recomputation, product(*sets)) if memory(chosen) <= limit)
    assert flops(found) <= best * 1.001


@pytest.mark.parametrize("share", [0.5, 0.93, 0.97, 0.999])
def test_the_search_through_many_layers_is_short(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits where nearly every operator is needed leave no room to choose; there the search is shortest."""
    config = replace(MOE, num_hidden_layers=54)
    costs = {layer: operator_costs(config, layer, width=2, attended=9) for layer in range(54)}
    none = Recomputation(((),) * 54)
    whole = Recomputation((("block",),) * 54)
    everything = spared_bytes(config, whole, width=2, attended=9)
    nodes = []

    def ceil(number: float) -> int:
        nodes.append(number)
        return math.ceil(number)

    monkeypatch.setattr(recompute, "math", SimpleNamespace(inf=math.inf, ceil=ceil))

    def memory(chosen: Recomputation) -> float:
        return everything - spared_bytes(config, chosen, width=2, attended=9)

    limit = everything * (1 - share)
    found = cheapest_that_fits(config, memory, limit, costs=costs, tokens=1, start=none)
    assert memory(found) <= limit
    assert len(nodes) < 2000
    if share > 0.9:
        assert all(len(operators) >= 1 for operators in found.operators)


def test_nothing_is_recomputed_when_all_fits() -> None:
    assert cheapest_that_fits(DENSE, lambda chosen: 1.0, 2.0, costs={}, tokens=1, start=NONE) is NONE


def test_whole_layers_where_operators_do_not_do_and_an_error_where_nothing_does() -> None:
    costs = {layer: operator_costs(DENSE, layer, width=2, attended=9) for layer in range(2)}

    def memory(chosen: Recomputation) -> float:
        return 5000.0 - spared_bytes(DENSE, chosen, width=2, attended=9)

    least = memory(Recomputation((("block",), ("block",))))
    found = cheapest_that_fits(DENSE, memory, least + 20, costs=costs, tokens=1, start=NONE)
    assert found.operators[0] == ("block",) and "block" not in found.operators[1]
    with pytest.raises(ConfigError, match="with every layer recomputed the run needs"):
        cheapest_that_fits(DENSE, memory, least - 1, costs=costs, tokens=1, start=NONE)
