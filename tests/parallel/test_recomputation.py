"""What the keys of recomputation mean, layer by layer."""

from typing import Any

import pytest

from erniekit.errors import ConfigError
from erniekit.parallel.recomputation import (
    CHEAP,
    Recomputation,
    choose_recomputation,
    parse_layers,
    parse_operators,
)

KEYS: dict[str, Any] = {
    "recompute": "true",
    "recompute_granularity": "full",
    "refined_recompute": None,
    "no_recompute_layers": None,
    "use_recompute_moe": False,
    "use_recompute_mtp": False,
    "use_recompute_loss_fn": False,
}


def test_what_granularities_mean() -> None:
    def chosen(**keys: Any) -> Recomputation:
        return choose_recomputation(3, **(KEYS | keys))

    assert chosen(recompute="false").operators == ((), (), ())
    assert chosen() == Recomputation((("block",),) * 3, mtp=True)
    assert chosen(recompute_granularity="full_attn").operators == (("attention",),) * 3
    assert chosen(no_recompute_layers="0,2").operators == ((), ("block",), ())
    assert chosen(recompute_granularity="core_attn", use_recompute_moe=True).operators[0] == (
        "core_attention",
        "experts",
    )
    assert set(chosen(recompute_granularity="selective").operators[1]) == set(CHEAP)
    refined = chosen(recompute_granularity="selective", refined_recompute="gate_up:1,head:all,qkv:1-2")
    assert refined.operators == (("gate_up",), ("qkv",), ("qkv",))
    assert refined.head and not refined.mtp
    assert refined.words() == "gate_up in 1 of 3 layers, qkv in 2 of 3 layers, head and loss"


def test_layers_and_operators_in_words() -> None:
    assert parse_layers("k", "0, 2-3", 4) == {0, 2, 3}
    assert parse_layers("k", "", 4) == set()
    assert parse_operators("norm:2,qkv:0-0+3-3,rope", 4) == {
        "norm": {0, 1},
        "qkv": {0, 3},
        "rope": {0, 1, 2, 3},
    }
    with pytest.raises(ConfigError, match="no layer 4; the model has the layers 0 to 3"):
        parse_layers("no_recompute_layers", "1-4", 4)
    with pytest.raises(ConfigError, match="norm:5 asks for 5 layers, and the model has 4"):
        parse_operators("norm:5", 4)
