"""Older spellings mean present keys."""

from pathlib import Path

from tests.config.loading import load, problems


def test_aliases(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "batch_size: 4\nper_device_eval_batch_size: 2\nlr_scheduler: wsd:231084\neval_strategy: no\n"
        "bf16: true\ntokenizer_name: t\nno_cuda: false\n",
    ).config
    assert (config.batch.per_device_train_batch_size, config.batch.per_device_eval_batch_size) == (4, 2)
    assert (config.schedule.lr_scheduler_type, config.schedule.wsd_steady_steps) == ("wsd", 231084)
    assert (config.model.compute_type, config.model.tokenizer) == ("bf16", "t")
    assert config.run.device == "auto"


def test_an_alias_on_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, "per_device_train_batch_size: 8\n", "batch_size=2").config
    assert config.batch.per_device_train_batch_size == 2


def test_two_spellings_of_one_key_must_agree(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "eval_iters: 3\nmax_evaluate_steps: 4\n")
    assert "eval_iters" in line and "max_evaluate_steps" in line


def test_a_wrong_value_is_told_under_the_key_that_was_written(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, "batch_size: big\n")
    assert ":3:13: batch_size: big is not allowed" in line


def test_a_switch_decides_what_auto_leaves_open(tmp_path: Path) -> None:
    assert load(tmp_path, "bf16: true\ncompute_type: auto\n").config.model.compute_type == "bf16"


def test_the_command_line_wins_over_a_switch_of_the_file(tmp_path: Path) -> None:
    assert load(tmp_path, "bf16: true\n", "compute_type=fp32").config.model.compute_type == "fp32"
    assert load(tmp_path, "compute_type: fp32\n", "--bf16").config.model.compute_type == "bf16"


def test_upstreams_algorithms_of_quantisation(tmp_path: Path) -> None:
    lora = "fine_tuning: LoRA\n"
    for written, meant in (("weight_only_int8", "wint8"), ("weight_only_mix", "wint4/8"), ("null", "auto")):
        config = load(tmp_path, f"{lora}weight_quantize_algo: {written}\n").config
        assert config.model.compute_type == meant
    (line,) = problems(tmp_path, f"{lora}weight_quantize_algo: weight_only_int3\n")
    assert "weight_only_int3 is not allowed" in line and "wint8" in line
    (line,) = problems(tmp_path, f"{lora}weight_quantize_algo: weight_only_mix\ncompute_type: wint8\n")
    assert "contradict" in line and "keep compute_type" in line
