"""A file and a command line become one frozen Config, or one error that tells everything."""

import dataclasses
from pathlib import Path

import pytest

from erniekit.config.load import load_config, load_overrides
from erniekit.errors import ConfigError
from tests.config.loading import load, problems, write


def test_values_reach_their_sections(tmp_path: Path) -> None:
    config = load(tmp_path, "learning_rate: 1e-5\nmax_seq_len: 128\nfreeze: [embed, norm]\n").config
    assert config.optimizer.learning_rate == 1e-5
    assert config.sequences.max_seq_len == 128
    assert config.model.freeze == ("embed", "norm")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.run.seed = 1  # type: ignore[misc]


def test_all_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "learning_rat: 1\nstage: STF\nseed: 1\nseed: 2\nmodel: {learning_rate: 1}\n"
    told = problems(tmp_path, text, "max_steps=many")
    assert [line.split(": ")[1] for line in told] == ["max_steps", "learning_rat", "stage", "seed", "model"]
    assert "did you mean learning_rate?" in told[1]
    assert "did you mean SFT?" in told[2]
    assert "given twice" in told[3] and ":5:1" in told[3]
    assert "learning_rate at the left margin" in told[4] or "put learning_rate" in told[4]


def test_interpolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EK_TEST_HOME", "/somewhere")
    text = "x-base: runs\noutput_dir: ${oc.env:EK_TEST_HOME}/${x-base}/${seed}\nwarmup_steps: ${eval_steps}\n"
    config = load(tmp_path, text, "eval_steps=7", "seed=null").config
    assert config.run.output_dir == "/somewhere/runs/42"
    assert config.schedule.warmup_steps == 7
    (line,) = problems(tmp_path, "output_dir: a/${nothing}\n")
    assert ":3:13: output_dir" in line and "nothing" in line
    (line,) = problems(tmp_path, "output_dir: ${\n")
    assert ":3:13: output_dir: ${" in line


def test_required_keys_depend_on_the_verb(tmp_path: Path) -> None:
    path = write(tmp_path, "seed: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, verb="train")
    assert f"{path}:1:1: model_name_or_path: is missing" in str(caught.value)
    assert "train_dataset_path: is missing" in str(caught.value)
    with pytest.raises(ConfigError, match="model_name_or_path: is missing"):
        load_config(path, verb="check")
    assert load_config(path, verb="show").config.run.seed == 1
    assert (
        load_overrides(["model_name_or_path=starter"], verb="chat").config.model.model_name_or_path
        == "starter"
    )


def test_what_a_run_finds_wrong_is_told_with_the_place_of_its_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("model_name_or_path: m\ntrain_dataset_path: a\nno_recompute_layers: 7\n")
    loaded = load_config(path, ["recompute=true"], verb="train")
    wrong = loaded.placed(ConfigError("no_recompute_layers: there is no layer 7"))
    assert isinstance(wrong, ConfigError)
    assert str(wrong) == f"{path}:3:1: no_recompute_layers: there is no layer 7"
    assert str(loaded.placed(ConfigError("recompute: auto: too little"))).startswith(
        "command line: recompute"
    )
    # A key that was not given, and a message that begins with none.
    for text in ("freeze: all", "m: damaged"):
        assert str(loaded.placed(ConfigError(text))) == text
