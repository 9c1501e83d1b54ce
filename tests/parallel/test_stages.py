"""Cuts of a model into stages, worked by hand and compared with all that there are."""

from itertools import combinations

import numpy as np
import pytest

from erniekit.errors import ConfigError
from erniekit.parallel.stages import (
    DENSE_BLOCK,
    EXPERTS_BLOCK,
    Cost,
    ModelCosts,
    balance,
    choose_stages,
    stage_costs,
)

UPSTREAM = f"layer:{DENSE_BLOCK}|EmptyLayer"


def _blocks(count: int, dense: int = 0) -> list[str]:
    return [DENSE_BLOCK] * dense + [EXPERTS_BLOCK] * (count - dense)


def test_even() -> None:
    assert choose_stages(_blocks(8), 4) == ((0, 2), (2, 4), (4, 6), (6, 8))
    assert choose_stages(_blocks(7), 3, pp_seg_method="uniform") == ((0, 2), (2, 4), (4, 7))


def test_upstreams_expression_counts_both_kinds_and_empty_layers() -> None:
    assert choose_stages(_blocks(8, dense=1), 4, pp_seg_method=UPSTREAM) == choose_stages(_blocks(8), 4)
    # 54 blocks and 2 empty ones on 8 stages: 7 each, and 5 for the last.
    found = choose_stages(_blocks(54, dense=3), 8, pp_seg_method=UPSTREAM, add_tail_layers=2)
    assert [stop - start for start, stop in found] == [7] * 7 + [5]


def test_an_expression_for_experts_counts_only_them() -> None:
    found = choose_stages(_blocks(6, dense=2), 2, pp_seg_method="layer:Moe")
    assert found == ((0, 4), (4, 6))


@pytest.mark.parametrize("method", ["[0,29,57]", "0, 29", [0, 29, 57], (0, 29)])
def test_lists_count_the_embedding(method: str | list[int]) -> None:
    assert choose_stages(_blocks(54), 2, pp_seg_method=method) == ((0, 28), (28, 54))


@pytest.mark.parametrize(
    ("method", "keys", "words"),
    [
        ("layer:Mamba", {}, "matches no block; their names are Ernie4_5_DecoderLayer"),
        ("layer:(", {}, "not a regular expression"),
        ("fair", {}, "write uniform, auto"),
        ("0,3,2", {}, r"0 first .*from 2 to 4"),
        ("1,2,3", {}, "does not cut 4 blocks into 3"),
        ("0,2", {}, "into 3 stages"),
        ("0,2,3,4", {}, "into 3 stages"),
        (UPSTREAM, {"add_tail_layers": 4}, "fewer add_tail_layers"),
    ],
)
def test_methods_that_do_not_fit(method: str, keys: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        choose_stages(_blocks(4, dense=4), 3, pp_seg_method=method, **keys)


def test_more_stages_than_blocks() -> None:
    with pytest.raises(ConfigError, match="is 5, and the model has 4 blocks"):
        choose_stages(_blocks(4), 5)


def test_auto_by_hand() -> None:
    """Six blocks of 1 and a head of 2 make 4 blocks, and 2 with it; a first block of 3 moves the cut."""
    costs = ModelCosts((Cost(1.0),) * 6, last=Cost(2.0))
    assert choose_stages(_blocks(6), 2, pp_seg_method="auto", costs=costs) == ((0, 4), (4, 6))
    costs = ModelCosts((Cost(3.0), *costs.blocks[1:]), last=Cost(2.0))
    assert choose_stages(_blocks(6), 2, pp_seg_method="auto", costs=costs) == ((0, 3), (3, 6))
    assert [cost.time for cost in stage_costs(((0, 3), (3, 6)), costs)] == [5.0, 5.0]


def test_memory_moves_blocks_from_ranks_that_hold_more() -> None:
    """Of 2 stages the first holds two activations: 4 blocks there take 4 * (1 + 2), 3 take 9."""
    costs = ModelCosts((Cost(1.0, 1.0, 1.0),) * 8)
    assert balance(costs, 2) == ((0, 4), (4, 8))
    assert balance(costs, 2, memory=11.0) == ((0, 3), (3, 8))
    with pytest.raises(ConfigError, match="no 2 stages within the memory"):
        balance(costs, 2, memory=8.0)
    # A schedule that holds one activation everywhere needs no such thing.
    assert balance(costs, 2, live=(1.0, 1.0), memory=8.0) == ((0, 4), (4, 8))


@pytest.mark.parametrize("seed", range(8))
def test_auto_is_the_best_of_all_cuts(seed: int) -> None:
    random = np.random.default_rng(seed)
    blocks = tuple(Cost(*random.uniform(1, 4, 3)) for _ in range(9))
    costs = ModelCosts(blocks, Cost(*random.uniform(0, 2, 3)), Cost(*random.uniform(0, 6, 3)))
    stages = 3
    memory = float(random.uniform(34, 60))

    def sizes(cut: tuple[tuple[int, int], ...]) -> tuple[float, float]:
        parts = stage_costs(cut, costs)
        held = [part.state + (stages - at) * part.activations for at, part in enumerate(parts)]
        return max(part.time for part in parts), max(held)

    cuts = [((0, one), (one, two), (two, 9)) for one, two in combinations(range(1, 9), 2)]
    fitting = [sizes(cut) for cut in cuts if sizes(cut)[1] <= memory]
    if fitting:
        assert sizes(balance(costs, stages, memory=memory)) == pytest.approx(min(fitting))
    else:
        with pytest.raises(ConfigError):
            balance(costs, stages, memory=memory)
    assert len(cuts) == 28
