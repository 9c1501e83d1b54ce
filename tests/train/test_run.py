import json
import os

import pytest
import yaml

from erniekit.checkpoint import store
from erniekit.checkpoint.store import Checkpoint
from erniekit.errors import CheckpointError, ConfigError
from erniekit.train.run import choose_work, open_run, plan_steps, require_same_rows
from tests.checkpoint.crews import run_all
from tests.checkpoint.test_crew import save

SETTINGS = {"learning_rate": 0.1, "freeze": [], "seed": 1}


def start(path, settings=SETTINGS, **changes):
    fields = dict(output_dir=str(path), overwrite_output_dir=False, resume_from_checkpoint="auto")
    return open_run(yaml.safe_dump({**settings, "logging_steps": 5}), settings, None, **{**fields, **changes})


def test_a_new_folder_gets_the_configuration(tmp_path):
    run = start(tmp_path / "a" / "out")
    assert run.start_from is None
    assert yaml.safe_load((run.path / "erniekit.yaml").read_text())["learning_rate"] == 0.1


def test_the_same_configuration_goes_on_and_another_is_refused(tmp_path):
    start(tmp_path)
    assert start(tmp_path).start_from is None  # killed before its first checkpoint: begins anew
    with pytest.raises(ConfigError, match="learning_rate: 0.1 before, 0.2 now") as caught:
        start(tmp_path, {**SETTINGS, "learning_rate": 0.2})
    assert "seed" not in str(caught.value).split("\n")[1]
    assert yaml.safe_load((tmp_path / "erniekit.yaml").read_text())["learning_rate"] == 0.1


def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    start(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "train_log.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    start(tmp_path, {**SETTINGS, "seed": 2}, overwrite_output_dir=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["erniekit.yaml", "notes.txt"]


def test_several_processes_read_a_checkpoint_through_once(tmp_path, monkeypatch):
    start(tmp_path)
    run_all(2, lambda member: save(member, tmp_path, 4))
    verified = []
    real = store.verify
    monkeypatch.setattr(store, "verify", lambda path: (verified.append(path), real(path)))
    found = run_all(2, lambda member: start(tmp_path, crew=member))
    assert [run.start_from for run in found] == [Checkpoint(4, tmp_path / "checkpoint-4")] * 2
    assert verified == [tmp_path / "checkpoint-4"]
    (tmp_path / "checkpoint-4" / "config.json").write_text("{ }")
    for run in run_all(2, lambda member: start(tmp_path, crew=member)):
        assert run.start_from is None


def test_none_never_continues(tmp_path):
    start(tmp_path)
    with pytest.raises(ConfigError, match="resume_from_checkpoint: none"):
        start(tmp_path, resume_from_checkpoint="none")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="output_dir: .*file"):
        start(tmp_path / "file")
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(CheckpointError, match="cannot be written"):
            start(tmp_path / "locked")


def test_a_step_of_as_many_sequences_however_they_are_split(tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"loader": {"rows_per_step": 8}}))
    start_from = Checkpoint(3, tmp_path)
    require_same_rows(start_from, 8, 2, 4)
    with pytest.raises(ConfigError, match="with 8 sequences in a step, and now a step would have 4"):
        require_same_rows(start_from, 4, 1, 2)
    with pytest.raises(
        ConfigError, match=r"\(2\) .* times 1 processes .* gradient_accumulation_steps: 4 to go"
    ):
        require_same_rows(start_from, 4, 1, 2)
    with pytest.raises(ConfigError, match="Write other numbers"):
        require_same_rows(start_from, 12, 2, 3)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"loader": {}}))
    require_same_rows(start_from, 4, 1, 2)  # of before this was written down


def test_steps():
    assert plan_steps(10, num_train_epochs=2.5, max_steps=-1) == 25
    assert plan_steps(10, num_train_epochs=2.5, max_steps=7) == 7
    assert plan_steps(3, num_train_epochs=0.1, max_steps=-1) == 1


def test_work():
    assert choose_work(stage="SFT", do_train=False, do_eval=True).train is False
    with pytest.raises(ConfigError, match="nothing to do"):
        choose_work(stage="SFT", do_train=False, do_eval=False)
