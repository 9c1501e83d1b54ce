"""Training of adapters from the command line: killed and continued, started from files, used unmerged."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from erniekit.testing.tiny_checkpoint import tiny_moe_config
from erniekit.testing.tiny_run import command, run_erniekit, write_run

FINAL = ("adapter_model.safetensors", "optimizer.safetensors", "trainer_state.json", "adapter_config.json")
CASES = {
    "LoRA with dropout, embedding saved": {
        "fine_tuning": "LoRA",
        "lora_dropout": 0.2,
        "lora_plus_scale": 4,
        "lora_modules_to_save": ["embed_tokens"],
    },
    "DoRA, fp32": {"fine_tuning": "DoRA", "compute_type": "fp32"},
    "PiSSA, bf16": {"fine_tuning": "PiSSA", "compute_type": "bf16", "use_async_save": True},
    "experts": {
        "fine_tuning": "LoRA",
        "numbers": tiny_moe_config(),
        "lora_target": ["all-linear", "experts", "router"],
    },
    "over nf4": {"fine_tuning": "LoRA", "compute_type": "nf4"},
    "DoRA over int8": {"fine_tuning": "DoRA", "compute_type": "wint8"},
    "experts over int4 and int8": {
        "fine_tuning": "LoRA",
        "compute_type": "wint4/8",
        "numbers": tiny_moe_config(),
        "lora_target": ["all-linear", "experts"],
    },
}


def killed_after(path: Path, log: Path, rows: int) -> None:
    process = subprocess.Popen(
        command("train", str(path)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        deadline = time.monotonic() + 90
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_bytes().count(b"\n") >= rows:
                break
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kill_and_continue_is_byte_equal(tmp_path: Path, case: str) -> None:
    keys = {"lora_rank": 3, **CASES[case]}
    whole = run_erniekit("train", str(write_run(tmp_path / "whole", **keys)))
    assert whole.returncode == 0, whole.stderr
    run = write_run(tmp_path / "cut", **keys, model_name_or_path=str(tmp_path / "whole" / "model"))
    out, finished = tmp_path / "cut" / "out", tmp_path / "whole" / "out"
    for rows in (2, 6):
        killed_after(run, out / "train_log.jsonl", rows)
    last = run_erniekit("train", str(run))
    assert last.returncode == 0, last.stderr
    for name in FINAL:
        assert (out / "checkpoint-8" / name).read_bytes() == (finished / "checkpoint-8" / name).read_bytes()
    assert (out / "train_log.jsonl").read_bytes() == (finished / "train_log.jsonl").read_bytes()
    assert not (out / "checkpoint-8" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_run_is_used_and_started_from(tmp_path: Path) -> None:
    run = write_run(tmp_path, fine_tuning="LoRA", lora_rank=4, max_steps=4, compute_type="fp32")
    assert run_erniekit("train", str(run)).returncode == 0
    out = tmp_path / "out"
    row = json.loads((out / "train_log.jsonl").read_text().splitlines()[-1])
    assert row["step"] == 4
    # The evaluation of the run, of the adapter's folder, and of the model with lora_path, are the same.
    found = []
    for words in ((str(run),), (str(run), f"model_name_or_path={out / 'checkpoint-4'}")):
        done = run_erniekit("eval", *words, "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout)["loss"])
    base = json.loads(run_erniekit("eval", str(run), "--base", "--json").stdout)["loss"]
    beside = run_erniekit("eval", str(run), "--base", "--json", f"lora_path={out}")
    found.append(json.loads(beside.stdout)["loss"])
    assert len(set(found)) == 1 and found[0] < base
    more = run_erniekit(
        "train", str(run), f"lora_path={out}", f"output_dir={tmp_path / 'more'}", "fine_tuning=lora"
    )
    assert more.returncode == 0, more.stderr
    first = json.loads((tmp_path / "more/train_log.jsonl").read_text().splitlines()[0])
    assert first["eval_loss"] == pytest.approx(found[0], abs=1e-6)
    answered = run_erniekit("generate", str(out), "--prompt", "red", "max_new_tokens=4", "temperature=0")
    assert answered.returncode == 0, answered.stderr
    exported = run_erniekit("export", str(run))
    assert exported.returncode == 0, exported.stderr
    assert "merged in fp32, rounded once to float32; merged and unmerged" in exported.stdout.replace(
        "\n", " "
    )
    merged = run_erniekit("eval", str(run), "--base", "--json", f"model_name_or_path={out / 'export'}")
    assert json.loads(merged.stdout)["loss"] == pytest.approx(found[0], abs=1e-5)
    wrong = run_erniekit(
        "train", str(run), f"lora_path={out}", "fine_tuning=Full", f"output_dir={tmp_path}/x"
    )
    assert wrong.returncode == 2 and "fine_tuning: Full would train without the adapter" in wrong.stderr
