"""The commands train, eval and data preview from the outside."""

import json

import pytest

from erniekit.testing.tiny_run import run_erniekit, write_run

pytestmark = pytest.mark.slow


def test_one_file_serves_train_eval_and_preview(tmp_path):
    run = str(write_run(tmp_path / "a folder", max_steps=2))
    preview = run_erniekit("data", "preview", run, "-n", "1")
    assert preview.returncode == 0, preview.stderr
    assert "40 rows" in preview.stdout and "an epoch:" in preview.stdout and "<|assistant|>" in preview.stdout
    before = run_erniekit("eval", run, "--json")
    assert before.returncode == 0, before.stderr
    trained = run_erniekit("train", run)
    assert trained.returncode == 0, trained.stderr
    for part in ("parameters", "memory estimated", "step 2/2", "held-out loss", "report.md"):
        assert part in trained.stderr, part
    after, base = run_erniekit("eval", run, "--json"), run_erniekit("eval", run, "--json", "--base")
    assert "step 2" in after.stderr
    assert json.loads(base.stdout)["loss"] == json.loads(before.stdout)["loss"]
    assert json.loads(after.stdout)["loss"] != json.loads(before.stdout)["loss"]


def test_what_only_evaluates_is_one_process_whatever_the_degrees(tmp_path):
    words = (str(write_run(tmp_path, max_steps=1)), "nproc_per_node=2", "tensor_parallel_degree=2")
    found = [
        run_erniekit("eval", *words, "--json"),
        run_erniekit("train", *words, "do_train=false", "do_eval=true"),
    ]
    for done in found:
        assert done.returncode == 0, done.stderr
        assert "evaluated in one process" in done.stderr and "tensor_parallel_degree: 2" in done.stderr
    assert not (tmp_path / "out" / "logs").exists()
    assert f"held-out loss {json.loads(found[0].stdout)['loss']:.4f}, perplexity" in found[1].stderr


def test_a_wrong_row_is_told_with_its_place(tmp_path):
    run = write_run(tmp_path)
    data = tmp_path / "train.jsonl"
    data.write_text(data.read_text() + '{"src": "only a question"}\n')
    for words in (("train", str(run)), ("data", "preview", str(run))):
        done = run_erniekit(*words)
        assert done.returncode == 2
        assert "train.jsonl:41: tgt is missing" in done.stderr and "Traceback" not in done.stderr


def test_preview_of_a_data_file_needs_only_a_model(tmp_path):
    write_run(tmp_path)
    done = run_erniekit(
        "data",
        "preview",
        str(tmp_path / "train.jsonl"),
        f"model_name_or_path={tmp_path / 'model'}",
        "max_seq_len=64",
    )
    assert done.returncode == 0, done.stderr
    assert "40 rows" in done.stdout
