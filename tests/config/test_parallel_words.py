"""Strings of words about parallelism: known ones are told with their reason, others are errors."""

from pathlib import Path

import pytest

from erniekit.config.config import Config
from erniekit.config.parallel_words import REFUSED, WITHOUT_EFFECT, wrong_word
from erniekit.errors import ConfigError
from tests.config.loading import load


def test_known_words_are_accepted_and_told(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "pipeline_parallel_config: enable_delay_scale_loss disable_partial_send_recv\n"
        "tensor_parallel_config: sync_param sync_grad\nsharding_parallel_config: split_param\n",
    )
    words = loaded.config.parallel_words
    assert words.pipeline_parallel_config == "enable_delay_scale_loss disable_partial_send_recv"
    told = "\n".join(loaded.notices)
    assert "enable_delay_scale_loss (pipeline_parallel_config): the loss is divided once" in told
    assert "sync_param (tensor_parallel_config), sync_grad (tensor_parallel_config): what processes" in told
    assert "split_param (sharding_parallel_config): every process updates" in told


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("pipeline_parallel_config: enable_delay_scale_los", "did you mean enable_delay_scale_loss"),
        ("tensor_parallel_config: split_param", "split_param is no word of it; known are enable_delay"),
        ("pipeline_parallel_config: enable_timer use_dualpipev", "schedule of two directions is not built"),
    ],
)
def test_other_words_are_errors(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, line + "\n")


def test_every_word_has_one_fate_and_a_reason() -> None:
    names = list(Config().parallel_words.__dict__)
    assert sorted(WITHOUT_EFFECT) == sorted(names) and set(REFUSED) <= set(names)
    assert sum(map(len, WITHOUT_EFFECT.values())) == 38
    for key, words in WITHOUT_EFFECT.items():
        assert not set(words) & set(REFUSED.get(key, {}))
        assert all(words.values())
        assert wrong_word(key, ", ".join(words)) is None
