"""A whole plan: on one device the estimate of one device, on several worked by hand."""

from dataclasses import replace

import pytest

from erniekit.estimate.machines import GIB, MACHINES
from erniekit.estimate.memory import training_memory
from erniekit.estimate.parallel import estimate_run, model_costs
from erniekit.estimate.shares import Spread
from erniekit.estimate.step_time import Workload
from erniekit.models.registry import load_family
from erniekit.parallel.recomputation import Recomputation
from erniekit.parallel.schedule import build_schedule
from tests.estimate.test_shares import ATTENTION, DENSE, EXPERTS, MLP

# Biases of two routers of four experts.
UNTRAINED = 8

WORK = Workload(compute_type="bf16", rows=2, seq_len=64, micro_batches=4, attended=40, logits_rows=32)


def estimate(config, spread=Spread(), work=WORK, machine=MACHINES["H800"], *, stages=None, name="1f1b", v=1):  # noqa: B008
    family = load_family(config)
    return estimate_run(
        config,
        spread,
        work,
        machine,
        stages=stages or [range(config.num_hidden_layers)],
        schedule=build_schedule(name, spread.pipeline, work.micro_batches, virtual_pp_degree=v),
        shapes=family.weights.memory_shapes(config),
        parts=family.plan,
    )


@pytest.mark.parametrize("config", [DENSE, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compute_type": "fp32", "micro_batches": 1},
        {"native": True},
        {"native": True, "low_precision_moments": True, "attention_dropout": 0.1},
        {"recomputation": "block"},
        {"recomputation": "gate_up", "native": True},
    ],
    ids=lambda changes: ",".join(map(str, changes.values())) or "plain",
)
@pytest.mark.parametrize("on_cpu", [False, True], ids=["gpu", "cpu"])
def test_one_device_is_the_estimate_of_one_device(config, changes, on_cpu):
    if "recomputation" in changes:
        chosen = Recomputation(((changes["recomputation"],),) * config.num_hidden_layers, head=True)
        changes = changes | {"recomputation": chosen}
    work = replace(WORK, **changes)
    plan = estimate(config, work=work, machine=MACHINES["cpu" if on_cpu else "H800"])
    expected = training_memory(
        config,
        num_trained=config.num_parameters() - UNTRAINED * (config is EXPERTS),
        compute_type=work.compute_type,
        rows=2,
        seq_len=64,
        attended=40,
        logits_rows=32,
        on_cpu=on_cpu,
        micro_batches=work.micro_batches,
        attention_dropout=work.attention_dropout,
        native=work.native,
        low_precision_moments=work.low_precision_moments,
        recomputation=work.recomputation,
    )
    (rank,) = plan.ranks
    assert rank.memory == expected
    assert rank.sent == {} and plan.bubble == 0 and plan.exposed == 0
    assert rank.parameters == config.num_parameters()


def test_sharding_divides_what_its_stage_says():
    numbers = DENSE.num_parameters()
    for stage, states, gradients, weights in ((1, 2, 1, 1), (2, 2, 2, 1), (3, 2, 2, 2)):
        spread = Spread(sharding=2, sharding_stage=stage)
        (rank,) = estimate(DENSE, spread, replace(WORK, compute_type="fp32")).ranks
        assert rank.memory["optimizer"] == 8 * numbers // states
        assert rank.memory["gradients"] == 4 * numbers // gradients
        assert rank.memory["weights"] == 4 * numbers // weights
        ends = 1000 * 32
        block = (numbers - ends) / 2
        # Gradients of a block and of the embedding; weights of both, and of the next block.
        expected = {1: 0, 2: 4 * (block + ends), 3: 4 * (block + ends) + 4 * (ends + 2 * block)}[stage]
        assert rank.memory.get("buffers", 0) == expected


def test_a_pipeline_holds_activations_of_the_micro_batches_under_way():
    work = replace(WORK, native=True, micro_batches=8, seq_len=4096, attended=4096)
    spread = Spread(pipeline=3)
    early = estimate(EXPERTS, spread, work, stages=[[0], [1], [2]])
    single = estimate(EXPERTS, spread, replace(work, micro_batches=1), stages=[[0], [1], [2]])
    more = [
        after.activations - before.activations
        for after, before in zip(early.ranks, single.ranks, strict=True)
    ]
    # 3, 2 and 1 micro-batches. Of a dense block a token keeps, in bf16: two streams of 32, projections of
    # 128 and the result of 64, gate and up of 96; in fp32 2 for the norms and 4 heads, 2 x 16 of rotation.
    dense = 2 * (2 * 32 + 128 + 64 + 96) + 4 * (2 + 4) + 4 * 16
    # A block of experts: two rows of 32 and 48, shared experts' 96, 6 x 4 scores in place of the MLP's.
    experts = dense + 2 * 2 * (32 + 48) + 4 * 6 * 4
    assert more == [2 * 2 * 4096 * dense, 2 * 4096 * experts, 0]
    assert early.worst == max(range(3), key=lambda rank: early.ranks[rank].total)
    # A stage is sent the stream once and its gradient once a micro-batch.
    stream = 2 * 4096 * 32 * 2
    assert [rank.sent["pipeline"] for rank in early.ranks] == [8 * stream, 16 * stream, 8 * stream]


def test_bubble_of_equal_stages_is_the_formula():
    config = replace(DENSE, num_hidden_layers=4, vocab_size=8)
    machine = replace(MACHINES["H800"], within=1e30, between=1e30)
    plan = estimate(
        config, Spread(pipeline=4), replace(WORK, labelled_share=0.0), machine, stages=[[0], [1], [2], [3]]
    )
    assert plan.bubble == pytest.approx(3 / 7)
    assert plan.seconds == plan.pipeline and plan.exposed == 0


def test_utilisation_counts_the_model_and_not_what_is_recomputed():
    plain = estimate(DENSE)
    again = estimate(DENSE, work=replace(WORK, recomputation=Recomputation((("block",),) * 2)))
    assert plain.utilisation == pytest.approx(MACHINES["H800"].efficiency, rel=0.01)
    assert again.model_flops == plain.model_flops and again.seconds > plain.seconds
    assert plain.tokens == 2 * 64 * 4
    assert estimate(DENSE, Spread(data=2, sharding=3)).tokens == 6 * plain.tokens


def test_reduction_hides_behind_the_last_backward_pass():
    slow = replace(MACHINES["H800"], within=1.0)
    plan = estimate(DENSE, Spread(data=2), machine=slow)
    flags = 4 * (2 + 2 * 6)
    assert plan.exposed == pytest.approx(4 * DENSE.num_parameters() + flags, rel=1e-6)
    fast = estimate(DENSE, Spread(data=2), machine=replace(slow, within=1e30))
    assert fast.exposed == 0


def test_states_in_main_memory():
    work = replace(WORK, offload_optimizer=True)
    plan = estimate(DENSE, work=work)
    assert "optimizer" not in plan.ranks[0].memory
    assert plan.ranks[0].host == 12 * DENSE.num_parameters()
    assert plan.update == 2 * plan.ranks[0].host / plan.machine.host


def test_experts_in_8_bits():
    whole, narrow = estimate(EXPERTS), estimate(EXPERTS, work=replace(WORK, compute_type="fp8"))
    experts = 2 * 4 * 3 * 32 * 24
    assert whole.ranks[0].memory["weights"] - narrow.ranks[0].memory["weights"] == experts


def test_what_fits():
    assert estimate(DENSE).fits
    small = MACHINES["H800"].changed(memory=0.3 * GIB)
    assert not estimate(DENSE, machine=small).fits


def test_costs_of_the_parts_are_those_of_the_stages():
    family = load_family(EXPERTS)
    shapes = family.weights.memory_shapes(EXPERTS)
    costs = model_costs(EXPERTS, Spread(), WORK, MACHINES["H800"], shapes=shapes, parts=family.plan)
    state = 2 + 4 + 12
    assert costs.first.state == costs.last.state == state * 1000 * 32
    assert costs.blocks[0].state == state * (ATTENTION + MLP + 64)
    assert costs.blocks[1] == costs.blocks[2]
    whole = estimate(EXPERTS)
    time = sum(cost.time for cost in (*costs.blocks, costs.first, costs.last))
    assert 4 * time == pytest.approx(whole.seconds)
    assert costs.last.time > 0 and costs.first.time == 0
