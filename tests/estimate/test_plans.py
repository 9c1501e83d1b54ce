"""Plans by the words of a configuration, what to change, and the search."""

from dataclasses import replace

import pytest

from erniekit.errors import ConfigError
from erniekit.estimate.machines import GIB, MACHINES
from erniekit.estimate.plans import (
    Model,
    Pipelining,
    _changes,
    automatic,
    choose_pipelining,
    make_plan,
    remedies,
    search,
    spreads,
)
from erniekit.estimate.shares import Spread
from erniekit.models.registry import load_family
from erniekit.parallel.recomputation import Recomputation
from tests.estimate.test_parallel import WORK
from tests.estimate.test_shares import EXPERTS

CONFIG = replace(EXPERTS, num_hidden_layers=6)
FAMILY = load_family(CONFIG)
MODEL = Model(CONFIG, FAMILY.weights.memory_shapes(CONFIG), FAMILY.plan)
MACHINE = MACHINES["H800"]
LONG = replace(WORK, seq_len=16384, attended=16384)


def test_words_of_the_cut():
    plan = make_plan(MODEL, Spread(pipeline=2), WORK, MACHINE, Pipelining(pp_seg_method="0,2"))
    assert [rank.blocks for rank in plan.ranks] == [(0,), (1, 2, 3, 4, 5)]
    with pytest.raises(ConfigError, match="pp_seg_method"):
        make_plan(MODEL, Spread(pipeline=2), WORK, MACHINE, Pipelining(pp_seg_method="0,9"))


def test_a_balanced_cut_is_no_slower():
    spread = Spread(pipeline=3)
    even = make_plan(MODEL, spread, WORK, MACHINE, Pipelining())
    auto = make_plan(MODEL, spread, WORK, MACHINE, Pipelining(pp_seg_method="auto"))
    assert auto.pipeline <= even.pipeline


def test_remedies_fit_and_keep_the_sequences():
    small = MACHINE.changed(memory=0.46 * GIB)
    tight = make_plan(MODEL, Spread(tensor=2), LONG, small, Pipelining())
    assert not tight.fits
    found = dict(remedies(MODEL, tight, Pipelining()))
    assert found and all(plan.fits and plan.tokens == tight.tokens for plan in found.values())
    assert "recompute: true, use_recompute_loss_fn: true" in found


@pytest.mark.parametrize("spread", [Spread(sharding=2, pipeline=2), Spread(sharding=2, sharding_stage=2)])
def test_remedies_are_what_a_run_may_ask_for(spread):
    """A pipeline goes with stage 1 alone."""
    tight = make_plan(MODEL, spread, LONG, MACHINE.changed(memory=0.3 * GIB), Pipelining())
    changes = [changed for _, changed, _, _ in _changes(tight, CONFIG)]
    assert all(one.pipeline == 1 or one.sharding_stage == 1 for one in changes)
    assert any(one.sharding > 2 for one in changes)
    alone = make_plan(MODEL, Spread(), LONG, MACHINE, Pipelining())
    words = [told for told, _, _, _ in _changes(alone, CONFIG) if "sharding_parallel_degree" in told]
    assert words and all("sharding: stage1, sharding_parallel_degree" in told for told in words)


def test_automatic_recomputation_is_no_more_than_needed():
    small = MACHINE.changed(memory=0.6 * GIB)
    tight = make_plan(MODEL, Spread(pipeline=2), LONG, small, Pipelining())
    chosen = automatic(MODEL, tight, Pipelining())
    assert not tight.fits and chosen.fits
    assert not all("block" in names for names in chosen.workload.recomputation.operators)
    with pytest.raises(ConfigError, match="recompute: auto"):
        automatic(MODEL, replace(tight, machine=MACHINE.changed(memory=0.1 * GIB)), Pipelining())


def test_spreads_use_all_devices_and_divide_the_model():
    found = list(spreads(CONFIG, 8, MACHINE, seq_len=64))
    assert len(found) == len(set(found)) > 10
    for spread in found:
        assert spread.world_size == 8
        assert CONFIG.num_key_value_heads % spread.tensor == 0 and 4 % spread.expert == 0
    assert {spread.moe_group for spread in found} == {"dummy", "mp", "dp"}


def test_the_search_is_sorted_and_complete():
    found = search(MODEL, WORK, MACHINE, devices=4, sequences=16)
    assert [plan.seconds for plan, _ in found] == sorted(plan.seconds for plan, _ in found)
    assert all(plan.fits and plan.tokens == 16 * 64 for plan, _ in found)
    assert {plan.spread.pipeline for plan, _ in found} == {1, 2, 4}
    assert search(MODEL, WORK, MACHINE.changed(memory=1e6), devices=4, sequences=16) == []


def test_what_the_keys_of_a_pipeline_ask_for():
    keys = {
        "pipeline_schedule": "auto",
        "pipeline_activation_cap": 0,
        "virtual_pp_degree": 1,
        "pp_seg_method": "auto",
        "add_tail_layers": 1,
    }
    assert choose_pipelining(**keys) == Pipelining(pp_seg_method="auto", add_tail_layers=1)
    assert choose_pipelining(**keys | {"virtual_pp_degree": 2}).schedule == "interleaved"
    capped = choose_pipelining(
        **keys | {"pipeline_schedule": "memory_capped", "pipeline_activation_cap": 3, "virtual_pp_degree": 2}
    )
    assert (capped.schedule, capped.activation_cap, capped.virtual_pp_degree) == ("memory_capped", 3, 2)


def test_blocks_of_multi_token_prediction_that_are_recomputed_cost_the_last_stage():
    numbers = replace(CONFIG, num_nextn_predict_layers=1)
    model = Model(numbers, FAMILY.weights.memory_shapes(numbers), FAMILY.plan)
    nothing = ((),) * numbers.num_hidden_layers
    plain, again = (
        make_plan(
            model,
            Spread(pipeline=2),
            replace(WORK, recomputation=Recomputation(nothing, mtp=mtp)),
            MACHINE,
            Pipelining(),
        )
        for mtp in (False, True)
    )
    assert again.ranks[0].busy == plain.ranks[0].busy and again.ranks[1].busy > plain.ranks[1].busy
