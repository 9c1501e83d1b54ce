"""The first word of a command is a path, or already a setting."""

from pathlib import Path

import pytest

from erniekit.cli.arguments import read_config
from erniekit.errors import ConfigError
from erniekit.log import logger


def test_a_path_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "a=b.yaml"
    path.write_text("model_name_or_path: starter\n", encoding="utf-8")
    loaded = read_config([str(path), "--seed", "3"], "check")
    assert (loaded.config.model.model_name_or_path, loaded.config.run.seed) == ("starter", 3)


def test_a_path_may_be_absent() -> None:
    loaded = read_config(["model_name_or_path=starter", "--packing"], "chat")
    assert loaded.config.model.model_name_or_path == "starter"


def test_nothing_and_missing_files_are_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a configuration"):
        read_config([], "train")
    with pytest.raises(ConfigError, match="no such file"):
        read_config([str(tmp_path / "run.yaml")], "train")


def test_what_has_no_effect_is_told_by_the_one_that_starts_the_others(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger, "handlers", [caplog.handler])
    monkeypatch.delenv("ERNIEKIT_PARENT", raising=False)
    caplog.set_level("INFO", logger=logger.name)
    read_config(["model_name_or_path=starter", "fuse_rope=true"], "chat")
    assert "fuse_rope: " in caplog.text
    caplog.clear()
    monkeypatch.setenv("ERNIEKIT_PARENT", "1")
    read_config(["model_name_or_path=starter", "fuse_rope=true"], "chat")
    assert caplog.text == ""
