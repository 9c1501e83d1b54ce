"""Each rule between keys names both keys, and does not speak when all is well."""

import pytest

from erniekit.config.load import config_from_dict
from erniekit.errors import ConfigError

LEAST = {"model_name_or_path": "starter", "train_dataset_path": "a.jsonl"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"load_best_model_at_end": True}, ("load_best_model_at_end", "evaluation_strategy")),
        ({"early_stopping_patience": 2}, ("early_stopping_patience", "evaluation_strategy")),
        ({"evaluation_strategy": "steps"}, ("evaluation_strategy", "eval_dataset_path")),
        ({"do_eval": True}, ("do_eval", "eval_dataset_path")),
        (
            {
                "load_best_model_at_end": True,
                "evaluation_strategy": "steps",
                "eval_dataset_path": "b",
                "save_strategy": "no",
            },
            ("load_best_model_at_end", "save_strategy"),
        ),
        ({"min_lr": 1e-3}, ("min_lr", "learning_rate")),
        ({"lr_end": 1e-3, "lr_scheduler_type": "polynomial"}, ("lr_end", "learning_rate")),
        ({"wsd_steady_steps": 5}, ("wsd_steady_steps", "lr_scheduler_type")),
        ({"warmup_steps": 10, "max_steps": 10}, ("warmup_steps", "max_steps")),
        ({"max_steps": 0}, ("max_steps", "num_train_epochs")),
        (
            {"train_dataset_path": "a,b", "train_dataset_prob": "1.0"},
            ("train_dataset_prob", "train_dataset_path"),
        ),
        (
            {"train_dataset_path": "a,b,c", "train_dataset_type": "alpaca,alpaca"},
            ("train_dataset_type", "train_dataset_path"),
        ),
        ({"do_train": False}, ("do_train", "do_eval")),
    ],
)
def test_a_broken_rule_names_both_keys(values: dict[str, object], named: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(LEAST | values)
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 1
    assert all(key in lines[0] for key in named)


@pytest.mark.parametrize(
    "values",
    [
        {"evaluation_strategy": "steps", "eval_dataset_path": "b", "load_best_model_at_end": True},
        {"train_dataset_path": "a,b", "train_dataset_prob": "0.5,0.5", "train_dataset_type": "alpaca"},
        {"min_lr": 5e-5},
        {"warmup_steps": 9, "max_steps": 10},
        {"wsd_steady_steps": 5, "lr_scheduler_type": "wsd"},
    ],
)
def test_sound_combinations_pass(values: dict[str, object]) -> None:
    config_from_dict(LEAST | values)


def test_rules_of_training_do_not_bind_other_verbs() -> None:
    values = {"model_name_or_path": "starter", "load_best_model_at_end": True}
    assert config_from_dict(values, "chat").config.evaluation.load_best_model_at_end


def test_no_rule_speaks_about_a_value_that_could_not_be_read() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(LEAST | {"learning_rate": "fast", "min_lr": 1.0})
    assert len(str(caught.value).splitlines()) == 2
