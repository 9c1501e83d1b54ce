import json

import pytest

from erniekit.errors import UnsupportedError
from erniekit.train.reporting import TRACKERS, Reporter, open_trackers, read_log

FIELDS = dict(
    logging_steps=2, logging_first_step=True, logging_dir=None, report_to=(), run_name=None, disable_tqdm=True
)


def row(step, loss=1.5):
    return {"step": step, "loss": loss, "learning_rate": 1e-5, "grad_norm": 0.5}


def test_a_resumed_log_is_byte_equal_to_an_uninterrupted_one(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    reporter = Reporter(whole, 6, 0.0, **FIELDS)
    reporter.start(0, 0)
    for step in (2, 4, 6):
        reporter.log_step(row(step))
    reporter.close()

    first = Reporter(cut, 6, 0.0, **FIELDS)
    first.start(0, 0)
    first.log_step(row(2))
    saved = first.log_bytes()
    first.log_step(row(4, loss=99.0))  # of a step that the checkpoint does not know
    first.close()
    (cut / "train_log.jsonl").open("ab").write(b'{"step": 5, "lo')  # the kill came in the middle of a line
    second = Reporter(cut, 6, 0.0, **FIELDS)
    second.start(2, saved)
    second.log_step(row(4))
    second.log_step(row(6))
    second.close()
    assert (cut / "train_log.jsonl").read_bytes() == (whole / "train_log.jsonl").read_bytes()


def test_a_run_that_goes_on_in_a_new_folder_begins_its_log_there(tmp_path):
    reporter = Reporter(tmp_path, 6, 0.0, **FIELDS)
    reporter.start(2, 1000)  # so long was the log where the checkpoint comes from
    reporter.log_step(row(4))
    reporter.close()
    assert [entry["step"] for entry in read_log(tmp_path / "train_log.jsonl")] == [4]


def test_half_a_line_of_timing_does_not_spoil_the_next(tmp_path):
    (tmp_path / "timing.jsonl").write_bytes(b'{"step": 1}\n{"st')
    reporter = Reporter(tmp_path, 2, 0.0, **FIELDS)
    reporter.start(0, 0)
    reporter.log_step(row(2))
    reporter.close()
    assert [entry["step"] for entry in read_log(tmp_path / "timing.jsonl")] == [1, 2]


def test_which_steps_are_logged(tmp_path):
    reporter = Reporter(tmp_path, 7, 0.0, **FIELDS)
    assert [step for step in range(1, 8) if reporter.is_due(step)] == [1, 2, 4, 6, 7]
    reporter.close()


def test_timing_has_speed_and_mfu(tmp_path, monkeypatch):
    ticks = iter([10.0, 10.0, 12.0, 12.0, 12.0])
    monkeypatch.setattr("erniekit.train.reporting.time.perf_counter", lambda: next(ticks))
    reporter = Reporter(tmp_path, 2, 1e6, **FIELDS)
    reporter.peak_flops = 2e9
    reporter.start(0, 0)
    reporter.count(1000)
    reporter.log_step(row(2))
    reporter.close()
    timing = json.loads((tmp_path / "timing.jsonl").read_text())
    assert timing["seconds"] == 2.0
    assert timing["tokens_per_second"] == 500.0
    assert timing["mfu"] == 0.25  # 500 tokens/s at 1e6 FLOPs each, of a peak of 2e9
    assert timing["peak_memory_bytes"] >= timing["memory_bytes"] > 0


def test_trackers_get_the_names_of_other_trainers(tmp_path, monkeypatch):
    seen = []

    class Kept:
        def add(self, values, step):
            seen.append((step, values))

        def close(self):
            seen.append("closed")

    monkeypatch.setitem(TRACKERS, "wandb", lambda directory, run_name: Kept())
    reporter = Reporter(tmp_path, 2, 0.0, **{**FIELDS, "report_to": ("wandb",)})
    reporter.start(0, 0)
    reporter.log_step({**row(2), "rewards/chosen": 0.25})
    evaluation = {"eval_loss": 1.0, "eval_perplexity": 2.7, "eval_accuracy": 0.5}
    reporter.log_evaluation({"step": 2, **evaluation, "eval_rewards/margins": 0.5})
    reporter.close()
    assert seen[0][0] == 2 and seen[0][1]["train/rewards/chosen"] == 0.25 and "train/step" not in seen[0][1]
    assert seen[-2] == (
        2,
        {"eval/rewards/margins": 0.5, **{k.replace("_", "/"): v for k, v in evaluation.items()}},
    )
    assert seen[-1] == "closed"


def test_a_tracker_that_is_not_installed_names_the_extra():
    with pytest.raises(UnsupportedError, match=r"erniekit\[wandb\]"):
        open_trackers(["none", "wandb"], directory="x", run_name=None)
