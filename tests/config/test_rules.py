"""Each rule between keys names both keys, and does not speak when all is well."""

import pytest

from erniekit.config.load import config_from_dict
from erniekit.errors import ConfigError

LEAST = {"model_name_or_path": "starter", "train_dataset_path": "a.jsonl"}


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"stage": "DPO", "offset_alpha": 0.1, "loss_type": "hinge"}, ("offset_alpha", "loss_type")),
        ({"stage": "DPO", "label_smoothing": 0.1, "loss_type": "ipo"}, ("label_smoothing", "loss_type")),
        ({"stage": "DPO", "pref_loss_ratio": 0}, ("pref_loss_ratio", "sft_loss_ratio")),
        (
            {"stage": "DPO", "ref_model_update_steps": 5, "loss_type": "orpo"},
            ("ref_model_update_steps", "loss_type"),
        ),
        (
            {"stage": "DPO", "ref_model_update_steps": 5, "fine_tuning": "LoRA"},
            ("ref_model_update_steps: 5", "fine_tuning: LoRA"),
        ),
        (
            {"stage": "DPO", "ref_model_update_steps": 5, "ref_logps": "precompute"},
            ("ref_model_update_steps: 5", "write ref_logps: model"),
        ),
        (
            {"stage": "DPO", "ref_model_update_steps": 5, "use_async_save": True},
            ("ref_model_update_steps: 5", "use_async_save: false"),
        ),
        ({"stage": "DPO", "token_balance_loss": True}, ("token_balance_loss",)),
        (
            {"pipeline_parallel_degree": 2, "sharding": "stage3"},
            ("sharding: stage3", "pipeline_parallel_degree: 2", "write sharding: stage1"),
        ),
        (
            {"pipeline_parallel_degree": 2, "stage": "DPO", "ref_logps": "model"},
            ("ref_logps: model", "pipeline_parallel_degree: 2", "write ref_logps: precompute"),
        ),
        (
            {"pipeline_parallel_degree": 2, "stage": "DPO", "ref_model_update_steps": 5},
            ("ref_model_update_steps: 5", "pipeline_parallel_degree: 2"),
        ),
        (
            {"moe_group": "world", "tensor_parallel_degree": 2},
            ("moe_group: world", "tensor_parallel_degree: 2", "write sequence_parallel: true"),
        ),
        (
            {"expert_parallel_degree": 2, "tensor_parallel_degree": 2},
            ("moe_group: dummy", "tensor_parallel_degree: 2", "moe_group: mp or dp"),
        ),
        (
            {"global_aux_loss": True, "pipeline_parallel_degree": 2},
            ("global_aux_loss: true", "pipeline_parallel_degree: 2"),
        ),
        ({"compute_type": "wint4/8"}, ("compute_type", "fine_tuning")),
        ({"compute_type": "nf4", "fine_tuning": "PiSSA"}, ("compute_type", "fine_tuning")),
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
        ({"max_steps": 0}, ("max_steps", "num_train_epochs")),
        ({"evaluation_strategy": "epoch"}, ("evaluation_strategy", "eval_dataset_path")),
        ({"min_tokens": 9, "max_new_tokens": 8}, ("min_tokens", "max_new_tokens")),
        ({"greater_is_better": True}, ("greater_is_better", "metric_for_best_model")),
        (
            {"greater_is_better": True, "metric_for_best_model": "perplexity"},
            ("greater_is_better", "eval_perplexity"),
        ),
        (
            {"greater_is_better": False, "metric_for_best_model": "accuracy"},
            ("greater_is_better", "eval_accuracy"),
        ),
        ({"lr_scheduler": "cosine", "lr_scheduler_type": "linear"}, ("lr_scheduler:", "lr_scheduler_type")),
        ({"lr_scheduler": "wsd:5", "wsd_steady_steps": 6}, ("lr_scheduler:", "wsd_steady_steps")),
        ({"bf16": True, "compute_type": "fp32"}, ("bf16", "compute_type")),
        ({"lora": True, "fine_tuning": "Full"}, ("lora", "fine_tuning")),
        ({"no_cuda": True, "device": "gpu"}, ("no_cuda", "device")),
        ({"pad_to_max_seqlen": 8192}, ("pad_to_max_seqlen", "max_seq_len")),
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
        {"greater_is_better": False, "metric_for_best_model": "loss"},
        {"greater_is_better": True, "metric_for_best_model": "accuracy"},
        {"lr_scheduler": "Cosine", "lr_scheduler_type": "cosine"},
        {"lr_scheduler": "wsd:5", "lr_scheduler_type": "wsd"},
        {"bf16": True, "compute_type": "bf16"},
        {"bf16": False, "compute_type": "fp32"},
        {"pad_to_max_seqlen": 8192, "max_seq_len": 8192},
        {"pad_to_max_seqlen": 1},
        {"warmup_steps": 20, "max_steps": 10},
        {"offset_alpha": 0.1, "loss_type": "hinge"},  # another stage's
        {"stage": "DPO", "label_smoothing": 0.1, "loss_type": "simpo"},
        {"wsd_steady_steps": 5, "lr_scheduler_type": "wsd"},
        {"stage": "DPO", "ref_model_update_steps": 5},
    ],
)
def test_sound_combinations_pass(values: dict[str, object]) -> None:
    config_from_dict(LEAST | values)


def test_rules_of_training_do_not_bind_other_verbs() -> None:
    values = {"model_name_or_path": "starter", "load_best_model_at_end": True}
    assert config_from_dict(values, "chat").config.evaluation.load_best_model_at_end


def test_quantised_weights_are_evaluated_without_an_adapter() -> None:
    values = LEAST | {"compute_type": "nf4", "eval_dataset_path": "b.jsonl"}
    assert config_from_dict(values, "eval").config.model.compute_type == "nf4"


def test_a_rule_of_generation_binds_every_verb() -> None:
    with pytest.raises(ConfigError, match="min_tokens: 9 is above max_new_tokens: 8"):
        config_from_dict({"model_name_or_path": "starter", "min_tokens": 9, "max_new_tokens": 8}, "chat")


def test_no_rule_speaks_about_a_value_that_could_not_be_read() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(LEAST | {"learning_rate": "fast", "min_lr": 1.0})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("values", "notice"),
    [
        ({"lora_rank": 16, "lora_target": ["q_proj"]}, "lora_rank, lora_target: of an adapter"),
        ({"loss_type": "ipo"}, "loss_type: of pairs of answers, and stage is SFT"),
        ({"stage": "DPO", "mask_thinking": True}, "mask_thinking: of conversations"),
        (
            {"fine_tuning": "LoRA", "rslora_plus": True, "lora_alpha": 16},
            "lora_alpha: 4 with rslora_plus: true",
        ),
        ({"no_recompute_layers": "0-3"}, "no_recompute_layers: of recompute: true, and recompute: false"),
        (
            {"recompute": "auto", "recompute_granularity": "core_attn"},
            "recompute_granularity: of recompute: true, and recompute: auto chooses by itself",
        ),
        # Used, or as it is without being written.
        ({"recompute": "true", "recompute_granularity": "core_attn", "no_recompute_layers": "0"}, None),
        ({"fine_tuning": "DoRA", "lora_rank": 16, "stage": "DPO", "loss_type": "ipo"}, None),
        ({"lora_rank": 8, "loss_type": "sigmoid", "mask_thinking": True}, None),
    ],
)
def test_keys_that_others_leave_nothing_to_do_are_told(values: dict[str, object], notice: str | None) -> None:
    notices = config_from_dict(LEAST | values).notices
    assert [line[: len(notice or "")] for line in notices] == ([notice] if notice else [])
    assert config_from_dict(LEAST | values, "generate").notices == []


def test_the_best_of_no_evaluations_needs_both() -> None:
    with pytest.raises(ConfigError, match="write save_strategy: steps"):
        config_from_dict(LEAST | {"load_best_model_at_end": True, "save_strategy": "no"})


def test_adapters_to_train_from_and_to_evaluate() -> None:
    """Several are evaluated, with any fine_tuning; one is trained."""
    for method, why in (("Full", "would train without the adapter"), ("LoRA", "names 2 adapters")):
        values = {**LEAST, "fine_tuning": method, "lora_path": "./one,./two"}
        with pytest.raises(ConfigError, match=why):
            config_from_dict(values, verb="train")
        config_from_dict({**values, "eval_dataset_path": "b.jsonl"}, verb="eval")
