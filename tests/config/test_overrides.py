"""The words after a configuration, in their three forms."""

from pathlib import Path

import pytest

from tests.config.loading import load, problems


def test_forms_of_overrides(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        "seed: 1\nmax_steps: 10\nrun_name: a\n",
        "learning_rate=1e-5",
        "--max_steps",
        "-1",
        "--warmup-steps=3",
        "--packing",
        "--do_eval",
        "false",
        "seed=null",
        "run_name=a: b",
        "stop=[x, y]",
    )
    config = loaded.config
    assert config.optimizer.learning_rate == 1e-5
    assert config.batch.max_steps == -1
    assert config.schedule.warmup_steps == 3
    assert (config.sequences.packing, config.run.do_eval) == (True, False)
    assert config.run.seed == 42
    assert config.reporting.run_name == "a: b"
    assert config.generation.stop == ("x", "y")
    assert str(loaded.sources["max_steps"]) == "command line"
    assert str(loaded.sources["seed"]) == "default"
    assert str(loaded.sources["model_name_or_path"]) == f"{tmp_path / 'run.yaml'}:1:1"


@pytest.mark.parametrize("words", [["--max_steps"], ["what"], ["--learning_rate", "--seed", "1"]])
def test_overrides_that_are_none(tmp_path: Path, words: list[str]) -> None:
    (line,) = problems(tmp_path, "", *words)
    assert line.startswith("command line: ")
