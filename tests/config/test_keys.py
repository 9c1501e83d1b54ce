"""Every key has a fate, and asks for nothing it cannot get."""

from pathlib import Path

import pytest

from erniekit.errors import UnsupportedError
from tests.config.loading import load


def test_features_not_built_yet_are_named_with_their_key(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        load(tmp_path, "stage: KTO\nbeta: 0.1\nfine_tuning: lora\nadaptive_norm_clip: true\n")
    assert [line.split(": ", 1)[1] for line in str(caught.value).splitlines()[1:]] == [
        "not built yet: unpaired preference training (stage: KTO)",
        "not built yet: adaptive clipping of gradients (adaptive_norm_clip: true)",
    ]


def test_a_stage_not_built_does_not_hinder_other_verbs(tmp_path: Path) -> None:
    loaded = load(tmp_path, "stage: KTO\n", verb="chat")
    assert any("stage" in notice for notice in loaded.notices)


def test_the_vision_of_models_is_not_built_yet(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="vision-language"):
        load(tmp_path, "", "model_name_or_path=baidu/ERNIE-4.5-VL-28B-A3B-PT")
    assert load(tmp_path, "", "model_name_or_path=baidu/ERNIE-4.5-21B-A3B-PT").notices == []


def test_degrees_of_parallelism_are_right_under_either_name(tmp_path: Path) -> None:
    text = "tensor_model_parallel_size: 4\npipeline_parallel_degree: 2\nsharding_degree: -1\n"
    assert load(tmp_path, "sep_parallel_degree: 2\n").config.parallel.context_parallel_degree == 2
    parallel = load(tmp_path, text).config.parallel
    degrees = parallel.tensor_parallel_degree, parallel.pipeline_parallel_degree
    assert (*degrees, parallel.sharding_parallel_degree) == (4, 2, -1)


def test_keys_without_effect_are_told_once_by_reason(tmp_path: Path) -> None:
    notices = load(tmp_path, "fuse_rope: true\nuse_flash_attention: 1\nuse_sp_callback: true\n").notices
    assert len(notices) == 2
    assert notices[0].startswith("fuse_rope, use_flash_attention: ")


def test_values_that_ask_for_nothing_are_fine(tmp_path: Path) -> None:
    text = "tensor_parallel_degree: 1\npipeline_model_parallel_size: -1\nhf_hub_id: null\n"
    assert load(tmp_path, text + "lora: false\nfp16: false\n").notices == []


@pytest.mark.parametrize("key", ["recompute", "use_recompute"])
@pytest.mark.parametrize(
    "word, meant", [("true", "true"), ("False", "false"), ("yes", "true"), ("auto", "auto")]
)
def test_recompute_is_a_switch_with_a_third_position(tmp_path: Path, key: str, word: str, meant: str) -> None:
    loaded = load(tmp_path, f"{key}: {word}\n")
    assert loaded.config.recompute.recompute == meant and loaded.notices == []
    for verb in ("eval", "chat", "export"):
        assert load(tmp_path, f"eval_dataset_path: a\n{key}: {word}\n", verb=verb).notices == []


@pytest.mark.parametrize("key", ["offload_optim", "tensorwise_offload_optimizer"])
def test_both_spellings_keep_the_optimizer_in_main_memory(tmp_path: Path, key: str) -> None:
    loaded = load(tmp_path, f"{key}: true\n")
    assert loaded.config.optimizer.offload_optim and loaded.notices == []
    assert not load(tmp_path, f"{key}: false\n").config.optimizer.offload_optim
    assert load(tmp_path, "offload_optim: true\ntensorwise_offload_optimizer: true\n").notices == []


def test_gradients_are_released_without_being_asked(tmp_path: Path) -> None:
    (notice,) = load(tmp_path, "release_grads: true\n").notices
    assert notice.startswith("release_grads") and notice.endswith(
        "gradients are released after every update, always"
    )
