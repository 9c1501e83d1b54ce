"""The command with two processes against the command with one: figures, checkpoints, and going on alone."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.adapter_files import OWN_FILE, PEFT_BASENAME, PEFT_CONFIG
from erniekit.checkpoint.files import open_tensors
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from erniekit.testing.tiny_run import WORDS, write_pairs, write_run
from tests.train.together import run_together

pytestmark = [pytest.mark.slow, pytest.mark.several]

SHARED = {"compute_type": "fp32", "max_steps": 4, "eval_steps": 2, "logging_steps": 1}
LORA = {"fine_tuning": "LoRA", "lora_rank": 4}
EXPERTS = {"numbers": tiny_moe_config(num_nextn_predict_layers=1), "moe_use_aux_free": True}
TENSOR = {"tensor_parallel_degree": 2}
CONTEXT = {"context_parallel_degree": 2}
# Without gradients that are rounding alone and yet move a weight by the whole learning rate.
PLAIN = {"adam_epsilon": 1e-4}
# With half the usual beta: answers have log-probabilities near -140, rounded to 1e-5.
PAIRS = {**PLAIN, "stage": "DPO", "learning_rate": 1e-3, "beta": 0.05}
OVER_DATA = {"expert_parallel_degree": 2, "moe_group": "dp"}
# Numbers that differ in their last bit may be rounded to neighbours, which training makes more of.
FP8 = {**PLAIN, "use_fp8": True, "learning_rate": 1e-3}
# What is trained, how two processes share it, and how many read other sequences.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], int]] = {
    "LoRA, tensor": ({**LORA, "lora_modules_to_save": ["embed_tokens"]}, TENSOR, 1),
    "PiSSA, tensor and sequence": (
        {**LORA, "fine_tuning": "PiSSA"},
        {**TENSOR, "sequence_parallel": True, "pad_to_max_seqlen": True},
        1,
    ),
    "DoRA over int8, tensor": ({**LORA, "fine_tuning": "DoRA", "compute_type": "wint8"}, TENSOR, 1),
    "LoRA over nf4, sharded": ({**LORA, "compute_type": "nf4"}, {"sharding": "stage1"}, 2),
    "LoRA, three stages shared": ({**PLAIN, **LORA, "lora_plus_scale": 4}, {"sharding": "stage3"}, 2),
    "experts, recomputed": (
        {**PLAIN, **EXPERTS, "recompute": True, "recompute_granularity": "full"},
        OVER_DATA,
        2,
    ),
    "LoRA on experts": ({**LORA, **EXPERTS, "lora_target": ["all-linear", "experts"]}, OVER_DATA, 2),
    "PT of random weights": (
        {**PLAIN, "stage": "PT", "continue_training": False, "numbers": tiny_moe_config()},
        {"sharding": "stage1"},
        2,
    ),
    "random weights, experts": ({**EXPERTS, "continue_training": False}, OVER_DATA, 2),
    "random weights, tensor": (
        {"continue_training": False, "numbers": tiny_config(tie_word_embeddings=False)},
        TENSOR,
        1,
    ),
    "context": ({**PLAIN, "recompute": True, "recompute_granularity": "full"}, CONTEXT, 1),
    "context in bf16": ({**PLAIN, "compute_type": "bf16"}, CONTEXT, 1),
    "context, experts": ({**PLAIN, **EXPERTS}, {**CONTEXT, "moe_group": "world"}, 1),
    "LoRA, context": ({**PLAIN, **LORA}, CONTEXT, 1),
    "pairs": ({**PAIRS, "hidden_dropout_prob": 0.1}, {"sharding": "stage1"}, 2),
    "pairs, moving reference": ({**PAIRS, "ref_model_update_steps": 2}, {}, 2),
    "pairs, context": ({**PAIRS, "sft_loss_ratio": 0.2}, CONTEXT, 1),
    "pairs, LoRA, tensor": ({**PAIRS, **LORA}, TENSOR, 1),
    "FP8, tensor and sequence": (
        {**FP8, "fp8_swiglu_input": True},
        {**TENSOR, "sequence_parallel": True, "pad_to_max_seqlen": True},
        1,
    ),
    "FP8, three stages shared": ({**FP8, "fp8_offline_quant_weight": True}, {"sharding": "stage3"}, 2),
    "FP8, rows as bytes": ({**FP8, **EXPERTS, "fp8_dispatch": True}, OVER_DATA, 2),
    "FP8, pipeline": (FP8, {"pipeline_parallel_degree": 2, "pipeline_schedule": "zero_bubble"}, 1),
    "more prediction ahead": ({**EXPERTS, "num_nextn_predict_layers": 2}, {**TENSOR, "moe_group": "mp"}, 1),
}


def rows_of(out: Path) -> list[dict[str, Any]]:
    lines = (out / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def compare(one: list[dict[str, Any]], two: list[dict[str, Any]], tolerance: float) -> None:
    assert [row["step"] for row in one] == [row["step"] for row in two]
    for expected, found in zip(one, two, strict=True):
        assert expected.keys() == {key for key in found if not key.startswith("expert_processes_")}
        for key in expected.keys() & {"loss", "eval_loss", "lm_loss", "mtp_loss", "aux_loss", "grad_norm"}:
            wide = 10 * tolerance if key == "grad_norm" else tolerance
            assert found[key] == pytest.approx(expected[key], rel=wide), (key, expected["step"])
        assert expected.get("routers") is None or [r["load"] for r in expected["routers"]] == [
            r["load"] for r in found["routers"]
        ]


def write(folder: Path, case: str, **more: Any) -> Path:
    """The configuration of a case, with its data."""
    keys = {**SHARED, **CASES[case][0], **more}
    path = write_run(folder, **keys)
    if keys.get("stage") == "DPO":
        write_pairs(folder / "train.jsonl", 40)
        write_pairs(folder / "eval.jsonl", 8, seed=1)
    if keys.get("stage") == "PT":
        random = np.random.default_rng(2)
        for name in ("train.jsonl", "eval.jsonl"):
            texts = [{"text": " ".join(random.choice(WORDS, 20))} for _ in range(40)]
            (folder / name).write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def outs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """By case the folders of one process, of two, and of two of which one went on alone after two steps."""
    folder = tmp_path_factory.mktemp("runs")
    one, two, again = {}, {}, {}
    for case, (_, plan, replicas) in CASES.items():
        place = folder / case.replace(" ", "-").replace(",", "")
        alone = {key: value for key, value in plan.items() if key == "pad_to_max_seqlen"}
        one[case] = write(place / "one", case, gradient_accumulation_steps=2 * replicas, **alone)
        two[case] = write(place / "two", case, nproc_per_node=2, gradient_accumulation_steps=2, **plan)
    run_together(1, {case: (path, []) for case, path in one.items()})
    run_together(2, {case: (path, []) for case, path in two.items()})
    for case, (_, plan, replicas) in CASES.items():
        left = two[case].parent / "left"
        shutil.copytree(two[case].parent / "out", left)
        shutil.rmtree(left / "checkpoint-4")
        again[case] = [f"output_dir={left}", "nproc_per_node=1", *alone_of(plan, replicas)]
    run_together(1, {case: (two[case], words) for case, words in again.items()})
    return {
        case: (one[case].parent / "out", two[case].parent / "out", two[case].parent / "left")
        for case in CASES
    }


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(case: str, outs: dict[str, tuple[Path, Path, Path]]) -> None:
    what, keys = CASES[case][0], {**SHARED, **CASES[case][0]}
    one, two, left = outs[case]
    # In bf16, with which quantised weights are computed, a sum of two parts is rounded at other places;
    # numbers that differ in their last bit may be rounded to neighbours in FP8.
    narrow = keys["compute_type"] != "fp32" or "use_fp8" in what
    compare(rows_of(one), rows_of(two), 3e-3 if narrow else 1e-6)
    basename = PEFT_BASENAME if "fine_tuning" in what else "model"
    if basename == PEFT_BASENAME:
        for name in (PEFT_CONFIG, OWN_FILE):
            written = [(out / "checkpoint-4" / name).read_text(encoding="utf-8") for out in (one, two)]
            assert written[1].replace(str(two.parent), str(one.parent)) == written[0]
    for name in () if narrow else (basename, "optimizer"):
        expected, found = (open_tensors(out / "checkpoint-4", name) for out in (one, two))
        assert list(expected.names()) == list(found.names())
        for tensor in expected.names():
            np.testing.assert_allclose(
                found.read(tensor), expected.read(tensor), rtol=1e-3, atol=1e-5, err_msg=tensor
            )
    # One process went on from what two have saved.
    compare(rows_of(one), rows_of(left), 3e-3 if narrow else 1e-5)


def alone_of(plan: dict[str, Any], replicas: int) -> list[str]:
    """Overrides that put the sequences of a step, and everything else, into one process."""
    degrees = [f"{key}=null" for key in plan if key != "pad_to_max_seqlen"]
    return [*degrees, f"gradient_accumulation_steps={2 * replicas}"]
