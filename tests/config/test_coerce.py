"""Values are read strictly, but the way they were meant."""

from pathlib import Path

import pytest

from tests.config.loading import load, problems


@pytest.mark.parametrize(
    ("written", "key", "value"),
    [
        ("learning_rate: 1e-5", "learning_rate", 1e-5),
        ("learning_rate: '3e-4'", "learning_rate", 3e-4),
        ("learning_rate: 1", "learning_rate", 1.0),
        ("max_steps: 1e3", "max_steps", 1000),
        ("num_train_epochs: 2", "num_train_epochs", 2.0),
        ("save_strategy: no", "save_strategy", "no"),
        ("evaluation_strategy: NO", "evaluation_strategy", "no"),
        ("packing: 'false'", "packing", False),
        ("packing: 0", "packing", False),
        ("run_name: 007", "run_name", "007"),
        ("train_dataset_prob: 1.0", "train_dataset_prob", "1.0"),
        ("report_to: visualdl, wandb", "report_to", ("visualdl", "wandb")),
        ("report_to: none", "report_to", ("none",)),
        ("stop: 'a, b'", "stop", ("a, b",)),
        ("max_shard_size: 500MB", "max_shard_size", "500MB"),
        ("max_shard_size: 2.5", "max_shard_size", 2.5),
        ("fine_tuning: full", "fine_tuning", "Full"),
        ("optim: adamw_custom", "optim", "adamw"),
        ("output_dir: None", "output_dir", "./output"),
        ("eval_steps: null", "eval_steps", None),
        ("device: gpu:1", "device", "gpu:1"),
        ("pad_to_max_seqlen: 4096", "pad_to_max_seqlen", True),
        ("run_name: 2024-01-01", "run_name", "2024-01-01"),
        ("output_dir: ''", "output_dir", "./output"),
        ("run_name: yes", "run_name", "yes"),
        ("run_name: Off", "run_name", "Off"),
        ("eval_dataset_path: [a, b]", "eval_dataset_path", "a,b"),
        ("eval_dataset_prob: [0.25, 0.75]", "eval_dataset_prob", "0.25,0.75"),
        ("max_steps: 1_000", "max_steps", 1000),
    ],
)
def test_helpful_coercion(tmp_path: Path, written: str, key: str, value: object) -> None:
    found = load(tmp_path, written).config.values()[key]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "written",
    [
        "learning_rate: fast",
        "learning_rate: true",
        "learning_rate: .nan",
        "learning_rate: -1",
        "max_steps: 1.5",
        "max_seq_len: 1",
        "adam_beta2: 1.0",
        "packing: maybe",
        "packing: 2",
        "run_name: [a]",
        "run_name: true",
        "freeze: '['",
        "freeze: 3",
        "report_to: [tensorbord]",
        "device: tpu",
        "max_shard_size: big",
        "stage: STF",
        "seed: {a: 1}",
        "top_p: 0",
        "seed: 99999999999",
        "max_shard_size: 0MB",
        "max_shard_size: 010",
        "max_steps: 010",
        "max_steps: 0x10",
        "max_steps: 1:30",
        "max_steps: 0",
        "max_steps: -5",
        "max_evaluate_steps: 0",
        "learning_rate: '" + "9" * 5000 + "'",
        "learning_rate: 1e999",
        "train_dataset_type: [alpaca, [text]]",
        "eval_dataset_path: ['a,b', c]",
    ],
)
def test_wrong_values_name_place_key_and_value(tmp_path: Path, written: str) -> None:
    key, value = written.split(": ", 1)
    (line,) = problems(tmp_path, written)
    assert line.startswith(f"{tmp_path / 'run.yaml'}:3:{len(key) + 3}: {key}: ")
    assert "is not allowed" in line
    if len(value) < 60 and not value.startswith(("[", "{", "'")):
        assert value in line


def test_a_number_with_a_leading_zero_is_not_silently_octal(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "max_steps: 010\n")
    assert "octal" in line and line.endswith("write 10")
