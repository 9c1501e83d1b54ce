"""Bytes that processes send in a step of a run, as they count them, against the prediction: equal."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.estimate.traffic import compared
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from erniekit.testing.tiny_run import write_run
from erniekit.train.measured import planned

pytestmark = [pytest.mark.slow, pytest.mark.several]

ROWS, COLUMNS, MICRO_BATCHES = 2, 64, 4
KEYS = {
    **{"kernels": "paddle", "compute_type": "fp32", "max_steps": 2, "evaluation_strategy": "no"},
    **{
        "save_steps": 2,
        "gradient_accumulation_steps": MICRO_BATCHES,
        "pad_to_max_seqlen": True,
        "max_seq_len": COLUMNS,
    },
}
MODELS = {
    "dense": lambda: tiny_config(num_hidden_layers=4),
    "untied": lambda: tiny_config(tie_word_embeddings=False, use_bias=True),
    "experts": tiny_moe_config,
    "alone": lambda: tiny_moe_config(moe_num_shared_experts=0, tie_word_embeddings=False),
    "ahead": lambda: tiny_moe_config(num_nextn_predict_layers=1),
}
TP2, PP2 = {"tensor_parallel_degree": 2}, {"pipeline_parallel_degree": 2}
SP2, CP2 = {**TP2, "sequence_parallel": True}, {"context_parallel_degree": 2}
EP2, MP2 = {"moe_group": "dp", "expert_parallel_degree": 2}, {**TP2, "moe_group": "mp"}
AGAIN = {"recompute": True, "recompute_granularity": "full"}
LORA = {"fine_tuning": "LoRA", "lora_rank": 3}
BALANCED = {"moe_use_aux_free": True, "moe_use_aux_free_update_coef": 0.02, "moe_z_loss_lambda": 0.1}
BYTES = " bytes"
FP8 = {"use_fp8": True, "fp8_dequant_input": True, **AGAIN}
# Name -> model, keys. The first word is the model's.
TWO: dict[str, dict[str, Any]] = {
    "dense dp2": {},
    "dense sharding1": {"sharding": "stage1"},
    "dense sharding2": {"sharding": "stage2"},
    "untied sharding3": {"sharding": "stage3"},
    "experts sharding3 recompute": {"sharding": "stage3", **AGAIN},
    "experts sharding1 ep2": {"sharding": "stage1", **EP2},
    "dense tp2": TP2,
    "untied tp2": TP2,
    "untied tp2 sp": SP2,
    "dense tp2 recompute": {**TP2, **AGAIN},
    "dense tp2 sp recompute loss": {**SP2, **AGAIN, "use_recompute_loss_fn": True},
    "dense cp2 core_attn": {**CP2, "recompute": True, "recompute_granularity": "core_attn"},
    "untied cp2": CP2,
    "dense pp2": PP2,
    "untied pp2 zero_bubble": {**PP2, "pipeline_schedule": "zero_bubble"},
    "dense pp2 interleaved": {**PP2, "virtual_pp_degree": 2},
    "dense lora tp2": {**TP2, **LORA},
    "untied lora tp2 sp": {**SP2, **LORA},
    "dense lora dp2": LORA,
    "dense lora sharding3": {**LORA, "sharding": "stage3"},
    "experts dp2": BALANCED,
    "experts tp2": TP2,
    "alone tp2": TP2,
    "experts ep2": {**EP2, **BALANCED},
    "experts ep2 recompute": {**EP2, **AGAIN},
    "experts ep2 fp8": {**EP2, **FP8},
    "experts ep2 fp8 bytes": {**EP2, **FP8, "fp8_dispatch": True},
    "experts mp2": MP2,
    "experts mp2 sp": {**MP2, "sequence_parallel": True},
    "alone mp2 sp": {**MP2, "sequence_parallel": True},
    "experts cp2": {**CP2, **BALANCED},
    "experts pp2": {**PP2, **BALANCED},
    "ahead tp2": TP2,
    "ahead pp2": PP2,
}
FOUR: dict[str, dict[str, Any]] = {
    "dense dp2 tp2 sp": SP2,
    "experts dp2 sharding2": {"sharding": "stage2", "sharding_parallel_degree": 2},
    "dense sharding2 tp2 sp": {"sharding": "stage2", **SP2},
    "experts sharding2 pp2": {"sharding": "stage1", **PP2},
    "dense cp2 tp2": {**CP2, **TP2},
    "dense pp2 tp2": {**PP2, **TP2},
    "dense pp4": {"pipeline_parallel_degree": 4},
    "experts ep4": {**EP2, "expert_parallel_degree": 4},
    "experts dp2 ep2": EP2,
    "experts ep2 tp2": {**EP2, **TP2},
    "experts pp2 ep2": {**PP2, **EP2},
    "experts dp2 mp2 sp": {**MP2, "sequence_parallel": True},
}


def context_of(name: str) -> int:
    return {**TWO, **FOUR}[name].get("context_parallel_degree", 1)


def check(folder: Path, plans: dict[str, dict[str, Any]], nproc: int) -> None:
    paths = {
        name: str(write_run(folder / name.replace(" ", "-"), MODELS[name.split()[0]](), **{**KEYS, **keys}))
        for name, keys in plans.items()
    }
    found = run_distributed("erniekit.train.measured:measure_runs", nproc, paths, timeout=580)
    wrong = {}
    for name, path in paths.items():
        as_bytes = np.zeros(2)
        for rank, measured in enumerate(each[name] for each in found):
            step = measured[0]
            assert step.positions == ROWS * COLUMNS * MICRO_BATCHES / context_of(name)
            plan = planned(path, nproc, step)
            place = rank // (nproc // plan.spread.pipeline)
            both = compared(step.sent, plan.ranks[place].sent)
            assert both, name
            if name.endswith(BYTES):
                # There a row has fewer bytes than back, and the plan knows how many travel of both together.
                as_bytes += np.array(both.pop("expert")) / nproc
            if any(sent != pytest.approx(expected, abs=0.5) for sent, expected in both.values()):
                wrong[name, rank] = both, step.sent
        assert as_bytes[0] == pytest.approx(as_bytes[1], abs=0.5), name
        # Experts round rows to the bytes that travel.
        same = name.removesuffix(BYTES)
        assert [step.loss for step in found[0][name]] == [step.loss for step in found[0][same]], name
    assert not wrong, "\n".join(f"{name}: {both}" for name, both in wrong.items())


def test_two_processes(tmp_path: Path) -> None:
    check(tmp_path, TWO, 2)


def test_four_processes(tmp_path: Path) -> None:
    check(tmp_path, FOUR, 4)
