"""`erniekit export` as a command."""

import shutil
from pathlib import Path

from erniekit.checkpoint.files import open_tensors
from tests.cli.told import Told

ASK = ("--prompt", "hello", "max_new_tokens=12", "temperature=0")


def test_export_of_a_run_and_again(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    run = tmp_path / "moved run"
    shutil.copytree(tiny_run / "run", run)
    code, out, err = told("export", run)
    assert code == 0, err
    assert f"model: step 2 (best) of {run}" in err
    assert out.startswith(f"{run}/export: all tensors and the logits")
    assert "| optimizer steps | 2 of 3 |" in (run / "export" / "README.md").read_text()
    _, answer, _ = told("generate", run / "export", *ASK)
    assert answer == told("generate", run / "checkpoint-2", *ASK)[1]
    code, _, err = told("export", run)
    assert code == 1 and "overwrite_output_dir=true" in err
    assert told("export", run, "overwrite_output_dir=true", "export_dtype=bf16")[0] == 0


def test_export_to_a_named_place(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    words = ("export_layout=paddle", f"export_dir={tmp_path}/for paddle")
    code, _, err = told("export", tiny_run / "run.yaml", *words)
    assert code == 0, err
    assert "ernie.layers.0.self_attn.qkv_proj.weight" in open_tensors(tmp_path / "for paddle").names()


def test_what_a_run_holds_decides_and_not_fine_tuning(tiny_run: Path, told: Told, tmp_path: Path) -> None:
    code, out, _ = told("export", tiny_run / "run.yaml", "fine_tuning=LoRA", f"export_dir={tmp_path / 'e'}")
    assert code == 0 and "equal to the source" in out


def test_weights_that_a_run_holds_quantised_are_exported_in_full(
    tiny_run: Path, told: Told, tmp_path: Path
) -> None:
    code, _, err = told("export", tiny_run / "model", "compute_type=nf4", f"export_dir={tmp_path / 'e'}")
    assert code == 0 and "compute_type: nf4 is how weights are held" in err
    assert open_tensors(tmp_path / "e").info("model.norm.weight").dtype == "F32"


def test_a_model_is_no_adapter(tiny_run: Path, told: Told) -> None:
    run = tiny_run / "run"
    code, _, err = told("export", run, f"lora_path={run}")
    assert code == 1 and "holds a whole model and no adapter" in err
    code, _, err = told("export", run, "lora_path=nowhere")
    assert code == 2 and "lora_path: there is no folder nowhere" in err
