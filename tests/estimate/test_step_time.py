"""Seconds of a micro-batch in a stage, worked by hand."""

import pytest

from erniekit.estimate.machines import MACHINES
from erniekit.estimate.shares import Spread
from erniekit.estimate.step_time import Workload, local_tokens, recomputed_of, speed, stage_times
from erniekit.estimate.traffic import Traffic
from erniekit.parallel.recomputation import Recomputation
from tests.estimate.test_shares import ATTENTION, DENSE, EXPERTS, MLP, shares

MACHINE = MACHINES["H800"].changed(peak=1e6, efficiency=0.5, within=100.0, between=10.0)
WORK = Workload(
    compute_type="bf16", rows=2, seq_len=50, micro_batches=1, attended=9, logits_rows=1, labelled_share=0.5
)
# Scores of 64 channels with (9 + 1) / 2 tokens, twice.
SCORES = 2 * 2 * 64 * 5
BLOCK = 2 * (ATTENTION + MLP) + SCORES


def times(spread, stages=((0, 1),), work=WORK, config=DENSE, sent=None):
    return [
        stage_times(share, work, MACHINE, sent or Traffic()) for share in shares(config, spread, list(stages))
    ]


def test_arithmetic_at_a_share_of_the_peak():
    ((forward, into, weights),) = times(Spread())
    head = 2 * 1000 * 32 * 0.5
    assert forward == pytest.approx(100 * (2 * BLOCK + head) / 0.5e6)
    assert into == pytest.approx(100 * (2 * (BLOCK + SCORES) + head) / 0.5e6)
    assert weights == pytest.approx(100 * (2 * (BLOCK - SCORES) + head) / 0.5e6)


def test_axes_share_the_work():
    ((whole, *_),) = times(Spread())
    assert times(Spread(tensor=2, context=2))[0][0] == pytest.approx(whole / 4)
    assert local_tokens(WORK, Spread(context=2)) == 50
    first, last = times(Spread(pipeline=2), [[0], [1]])
    assert first[0] + last[0] == pytest.approx(whole)
    assert last[0] > first[0]  # the head


def test_what_is_recomputed_is_there_in_the_backward_pass():
    again = Recomputation((("block",), ()))
    plain, more = times(Spread())[0], times(Spread(), work=_with(recomputation=again))[0]
    assert more[0] == plain[0] and more[2] == plain[2]
    # With the few operations of norm, rotation and activation that the rest of the estimate leaves out.
    assert 100 * BLOCK / 0.5e6 < more[1] - plain[1] < 1.1 * 100 * BLOCK / 0.5e6
    second = shares(DENSE, Spread(pipeline=2), [[0], [1]])[1]
    assert recomputed_of(again, second) == Recomputation(((),))


def test_bytes_wait_for_the_bandwidth_of_their_axis():
    sent = Traffic()
    sent.forward["tensor"] = 300
    plain, more = times(Spread())[0], times(Spread(), sent=sent)[0]
    assert more[0] - plain[0] == pytest.approx(3.0) and more[1] == plain[1]
    assert speed(MACHINE, Spread(tensor=8), "tensor") == 100
    assert speed(MACHINE, Spread(tensor=16), "tensor") == 10
    assert speed(MACHINE, Spread(tensor=4, sharding=4), "sharding") == 10
    assert speed(MACHINE, Spread(sharding=16, expert=8, moe_group="dp"), "expert") == 100
    assert speed(MACHINE, Spread(tensor=2, data=8, expert=8, moe_group="dp"), "expert") == 10


def test_fp8_speeds_up_mlps_and_experts_only():
    config = EXPERTS
    narrow, fast = (
        times(Spread(), [range(3)], config=config),
        times(Spread(), [range(3)], _with(compute_type="fp8"), config),
    )
    inner = 2 * (MLP + 2 * (2 * 3 * 32 * 24 + MLP))  # one MLP; two of three blocks: 2 experts and the shared
    saved = 100 * inner * (1 - MACHINE.peak / MACHINE.peak_fp8) / 0.5e6
    assert narrow[0][0] - fast[0][0] == pytest.approx(saved)


def _with(**changes):
    from dataclasses import replace

    return replace(WORK, **changes)
