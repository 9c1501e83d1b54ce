"""A tiny model and a tiny run for commands to work on, and what a command says."""

import json
from pathlib import Path

import pytest

from erniekit.cli.main import main
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.cli.told import Told


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, and a run of three checkpoints whose best is the second."""
    place = tmp_path_factory.mktemp("made with spaces")
    write_tiny_checkpoint(place / "model", seed=9)
    for step in (1, 2, 3):
        checkpoint = write_tiny_checkpoint(place / "run" / f"checkpoint-{step}", seed=step)
        state = {"step": step, "total_steps": 3, "progress": {"num_tokens": 10 * step, "evaluations": []}}
        (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    (place / "run" / "best").write_text("checkpoint-2\n")
    (place / "run" / "latest").write_text("checkpoint-3\n")
    settings = (
        f"model_name_or_path: {place}/model\noutput_dir: elsewhere\nmax_new_tokens: 7\nlearning_rate: 0.125\n"
    )
    (place / "run" / "erniekit.yaml").write_text(settings + "overwrite_output_dir: true\n")
    (place / "run.yaml").write_text(f"model_name_or_path: {place}/model\noutput_dir: {place}/run\n")
    (place / "new.yaml").write_text(f"model_name_or_path: {place}/model\noutput_dir: {place}/none\n")
    return place


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    """Run a command; returns its exit code, and what it wrote to standard output and error."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
