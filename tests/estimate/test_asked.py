"""What a configuration asks for of several devices: no key of parallelism is passed over."""

from dataclasses import replace

import pytest

from erniekit.config.config import build_config
from erniekit.errors import ConfigError
from erniekit.estimate.asked import asked_model, asked_pipelining, asked_spread, asked_workload
from erniekit.estimate.machines import MACHINES
from erniekit.estimate.plans import make_plan
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

DENSE = tiny_config(num_hidden_layers=4)
EXPERTS = tiny_moe_config(num_nextn_predict_layers=2)


def plan(numbers=DENSE, devices=None, **keys):
    config = build_config({"max_seq_len": 64, "gradient_accumulation_steps": 4, **keys})
    model, machine = asked_model(config, numbers), MACHINES["cpu"]
    spread = asked_spread(config, model.numbers, devices)
    workload = asked_workload(config, model.numbers, machine)
    return make_plan(model, spread, workload, machine, asked_pipelining(config))


@pytest.mark.parametrize(
    ("keys", "facts"),
    [
        ({"tensor_parallel_degree": 2, "sequence_parallel": True}, {"tensor": 2, "sequence_parallel": True}),
        ({"sequence_parallel": True}, {"sequence_parallel": False}),
        ({"sharding_parallel_degree": 2, "sharding": "stage2"}, {"sharding": 2, "sharding_stage": 2}),
        ({"context_parallel_degree": 2}, {"context": 2}),
        ({"tensor_parallel_degree": 2, "moe_group": "mp"}, {"expert": 2, "moe_group": "mp"}),
    ],
)
def test_degrees(keys, facts):
    spread = plan(EXPERTS, **keys).spread
    assert {name: getattr(spread, name) for name in facts} == facts


def test_what_the_degrees_leave_is_data_parallel_or_sharding():
    assert plan(devices=4, tensor_parallel_degree=2).spread.data == 2
    assert plan(devices=4, tensor_parallel_degree=2, sharding="stage1").spread.sharding == 2
    with pytest.raises(ConfigError, match="tensor_parallel_degree: 4 does not divide num_key_value_heads: 2"):
        plan(tensor_parallel_degree=4)


def test_keys_of_a_pipeline():
    two = {"pipeline_parallel_degree": 2}
    plain = plan(**two)
    assert [len(rank.blocks) for rank in plan(**two, pp_seg_method="0,2").ranks] == [1, 3]
    assert plan(**two, virtual_pp_degree=2).bubble < plain.bubble
    assert plan(**two, pipeline_schedule="zero_bubble").bubble < plain.bubble


def test_adapters_blocks_ahead_and_quantised_weights():
    whole = plan()
    adapted = plan(fine_tuning="LoRA", lora_rank=2)
    assert adapted.ranks[0].trained < whole.ranks[0].trained / 4
    assert adapted.ranks[0].activations > whole.ranks[0].activations  # what the factors keep
    small = plan(fine_tuning="LoRA", lora_rank=2, compute_type="wint8")
    wide = plan(fine_tuning="LoRA", lora_rank=2, compute_type="bf16")
    matrices = 4 * (32 * 128 + 64 * 32 + 3 * 32 * 48)
    scales = 4 * 4 * (128 + 32 + 2 * 48 + 32)
    assert wide.ranks[0].memory["weights"] - small.ranks[0].memory["weights"] == matrices - scales
    ahead, less, pairs = (
        plan(EXPERTS, **keys) for keys in ({}, {"num_nextn_predict_layers": 1}, {"stage": "DPO"})
    )
    assert ahead.ranks[0].parameters > less.ranks[0].parameters
    # Preference training holds them and leaves them out.
    assert pairs.ranks[0].parameters == ahead.ranks[0].parameters
    assert pairs.ranks[0].activations < less.ranks[0].activations


def test_the_bias_of_a_router_is_not_trained():
    model = asked_model(build_config({}), EXPERTS)
    assert model.is_trained is not None
    assert [name for name, trained in model.is_trained.items() if not trained] == [
        f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias" for layer in (1, 2)
    ]


def test_what_is_known_better_takes_the_place_of_what_is_assumed():
    config = build_config({"max_seq_len": 64})
    workload = asked_workload(config, DENSE, MACHINES["cpu"], 10.0, labelled_share=0.5)
    assert workload.attended == 10 and workload.labelled_share == 0.5
    assert workload == replace(asked_workload(config, DENSE, MACHINES["cpu"], 10.0), labelled_share=0.5)
