"""A killed run that is started again ends with the same bytes as one that was never killed."""

import os
import signal
import subprocess
import time

import pytest

from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import command, run_erniekit, write_run

FINAL = ("model.safetensors", "optimizer.safetensors", "trainer_state.json", "config.json")
CASES = {
    "packed, dropout, evaluation": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "padded, bf16": {"packing": False, "compute_type": "bf16", "hidden_dropout_prob": 0.1},
    "asynchronous, best kept": {
        "use_async_save": True,
        "load_best_model_at_end": True,
        "save_total_limit": 2,
    },
    "trained for its rounding": {
        "qat_scheme": "w8a8",
        "apply_online_actscale_step": 3,
        "qat_delay_steps": 1,
        "qat_learn_scales": True,
        "use_async_save": True,
    },
    # Rows of the log and checkpoints at different steps: what a row tells of routers is of its own step.
    "experts balanced by a bias, multi-token prediction": {
        "numbers": tiny_moe_config(),
        "num_nextn_predict_layers": 1,
        "moe_use_aux_free": True,
        "moe_orthogonal_loss_lambda": 0.01,
        "moe_gate_lr_ratio": 0.5,
        "logging_steps": 3,
    },
}


def start(path):
    return subprocess.Popen(
        command("train", str(path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(condition, process, seconds=90):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        if process.poll() is not None:
            return
        time.sleep(0.005)
    raise AssertionError("waited too long")


def contents(folder):
    names = [*FINAL, *(path.name for path in folder.glob("qat.*"))]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kill_and_continue_is_byte_equal(tmp_path, case):
    whole = run_erniekit("train", str(write_run(tmp_path / "whole", **CASES[case])))
    assert whole.returncode == 0, whole.stderr
    run = write_run(tmp_path / "cut", **CASES[case], model_name_or_path=str(tmp_path / "whole" / "model"))
    # The paths of the data differ between the two folders; the data themselves do not.
    out = tmp_path / "cut" / "out"
    log = out / "train_log.jsonl"
    for rows_seen in (1, 4, 7):
        process = start(run)
        try:
            wait_for(lambda n=rows_seen: log.exists() and log.read_bytes().count(b"\n") >= n, process)
        finally:
            process.kill()
            process.wait(30)
    last = run_erniekit("train", str(run))
    assert last.returncode == 0, last.stderr
    finished = tmp_path / "whole" / "out"
    assert contents(out / "checkpoint-8") == contents(finished / "checkpoint-8")
    assert log.read_bytes() == (finished / "train_log.jsonl").read_bytes()
    assert not [path for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_the_run_goes_on(tmp_path, number, code):
    run = write_run(tmp_path, save_strategy="no", max_steps=400, eval_steps=1000)
    log = tmp_path / "out" / "train_log.jsonl"
    process = start(run)
    try:
        wait_for(lambda: log.exists() and log.read_bytes().count(b"\n") >= 3, process)
        process.send_signal(number)
        assert process.wait(60) == code
    finally:
        process.kill()
        process.wait(30)
    saved = [path.name for path in (tmp_path / "out").glob("checkpoint-*")]
    assert len(saved) == 1
    assert (tmp_path / "out" / "latest").read_text().strip() == saved[0]


@pytest.mark.slow
def test_another_configuration_is_refused_with_the_difference(tmp_path):
    run = write_run(tmp_path, max_steps=2)
    assert run_erniekit("train", str(run)).returncode == 0
    before = (tmp_path / "out" / "erniekit.yaml").read_bytes()
    refused = run_erniekit("train", str(run), "learning_rate=0.5")
    assert refused.returncode == 2
    assert "learning_rate: 0.01 before, 0.5 now" in refused.stderr
    assert "overwrite_output_dir" in refused.stderr
    assert (tmp_path / "out" / "erniekit.yaml").read_bytes() == before
    none = run_erniekit("train", str(run), "resume_from_checkpoint=none")
    assert none.returncode == 2 and "overwrite_output_dir: true" in none.stderr
    anew = run_erniekit("train", str(run), "learning_rate=0.5", "overwrite_output_dir=true")
    assert anew.returncode == 0, anew.stderr


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    run = write_run(tmp_path, max_steps=4)
    assert run_erniekit("train", str(run)).returncode == 0
    out = tmp_path / "out"
    good = contents(out / "checkpoint-4")
    damaged = out / "checkpoint-4" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    again = run_erniekit("train", str(run))
    assert again.returncode == 0, again.stderr
    assert "checkpoint-4/model.safetensors is damaged" in again.stderr
    assert "continuing from" in again.stderr and "checkpoint-2" in again.stderr
    assert contents(out / "checkpoint-4") == good
    damaged.write_bytes(data[:100])
    named = run_erniekit("train", str(run), f"resume_from_checkpoint={out / 'checkpoint-4'}")
    assert named.returncode == 1
    assert "truncated" in named.stderr and "checkpoint-2" in named.stderr


@pytest.mark.slow
def test_the_saved_configuration_alone_repeats_the_run(tmp_path):
    run = write_run(tmp_path, max_steps=3)
    assert run_erniekit("train", str(run), "seed=11").returncode == 0
    out = tmp_path / "out"
    saved = tmp_path / "saved.yaml"
    saved.write_bytes((out / "erniekit.yaml").read_bytes())
    again = run_erniekit("train", str(saved), f"output_dir={tmp_path / 'again'}")
    assert again.returncode == 0, again.stderr
    assert contents(out / "checkpoint-3") == contents(tmp_path / "again" / "checkpoint-3")
