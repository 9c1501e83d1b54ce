"""The keys of recomputation: spellings, lists of operators and layers, and what contradicts what."""

from pathlib import Path

import pytest

from erniekit.config.recompute import OPERATORS
from erniekit.models.ernie45 import plan
from tests.config.loading import load, problems


def test_operators_are_those_of_the_plan() -> None:
    assert set(OPERATORS) == {*plan.OPERATORS, "head", "mtp"}


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("gate_up:all, norm:4,qkv:0-3+8-9,rope", "gate_up:all, norm:4,qkv:0-3+8-9,rope"),
        ("[gate_up:all, head]", "gate_up:all,head"),
    ],
)
def test_refined_recompute_is_a_text_or_a_list(tmp_path: Path, text: str, kept: str) -> None:
    config = load(
        tmp_path, f"recompute: true\nrecompute_granularity: selective\nrefined_recompute: {text}\n"
    ).config
    assert config.recompute.refined_recompute == kept


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("flash_attn:4", "name what is recomputed"),
        ("gateup:4", "there is no operator 'gateup'"),
        ("gate_up:0-3,gate_up:8-9", "comes twice; join its layers with +"),
        ("gate_up:x", "write gate_up:all, gate_up:8"),
        ("gate_up:3-1", "runs backwards"),
        ("gate_up:1+2", "gate_up:0-3+8-11"),
    ],
)
def test_wrong_lists_of_operators(tmp_path: Path, text: str, told: str) -> None:
    keys = f"recompute: true\nrecompute_granularity: selective\nrefined_recompute: {text}\n"
    (problem,) = problems(tmp_path, keys)
    assert told in problem


@pytest.mark.parametrize(("text", "kept"), [("3", "3"), ("[0, 2]", "0,2"), ("0-3", "0-3")])
def test_layers_are_numbers_or_ranges(tmp_path: Path, text: str, kept: str) -> None:
    assert load(tmp_path, f"no_recompute_layers: {text}\n").config.recompute.no_recompute_layers == kept


def test_wrong_layers(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, "no_recompute_layers: first\n")
    assert "write 0,3 or 0-3" in problem
    (problem,) = problems(tmp_path, "no_recompute_layers: 4-2\n")
    assert "runs backwards" in problem


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ("recompute: true\nrefined_recompute: norm:all\n", "recompute_granularity: selective"),
        ("refined_recompute: norm:all\nrecompute_granularity: selective\n", "write recompute: true"),
        ("recompute: true\nmemory_limit_gb: 4\n", "is for recompute: auto"),
        ("recompute: true\noffload_recompute_inputs: true\ndevice: cpu\n", "device is cpu"),
    ],
)
def test_contradictions(tmp_path: Path, keys: str, told: str) -> None:
    (problem,) = problems(tmp_path, keys)
    assert told in problem


def test_an_upstream_file_loads_with_one_notice(tmp_path: Path) -> None:
    keys = "recompute: True\nrecompute_granularity: full\nrecompute_use_reentrant: True\n"
    loaded = load(tmp_path, keys + "use_recompute_moe: true\nuse_recompute_loss_fn: false\n")
    assert loaded.config.recompute.recompute == "true" and loaded.config.recompute.use_recompute_moe
    assert [notice.partition(":")[0] for notice in loaded.notices] == ["recompute_use_reentrant"]
