"""Which model the first word of a command means."""

from pathlib import Path

from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.cli.told import Told
from tests.train.test_contents import build, write

ASK = ("--prompt", "hello", "max_new_tokens=12", "temperature=0")


def test_which_model_is_used_is_told(tiny_run: Path, told: Told) -> None:
    run, model = tiny_run / "run", tiny_run / "model"
    answers = {}
    for name, words, description in [
        ("model", [model], f"model: {model}"),
        ("run", [run], f"model: step 2 (best) of {run}"),
        ("yaml", [tiny_run / "run.yaml"], f"model: step 2 (best) of {run}"),
        ("checkpoint", [run / "checkpoint-3"], f"model: step 3 (latest) of {run}"),
        ("new", [tiny_run / "new.yaml"], f"model: {model}"),
        ("named", [tiny_run / "run.yaml", f"model_name_or_path={model}"], f"model: {model}"),
    ]:
        code, out, err = told("generate", *words, *ASK)
        assert code == 0, err
        assert description in err
        answers[name] = out
    assert answers["run"] == answers["yaml"]
    assert answers["model"] == answers["new"] == answers["named"]
    assert len({answers["model"], answers["run"], answers["checkpoint"]}) == 3


def test_settings_of_the_run_hold_for_its_checkpoints(tiny_run: Path, told: Told) -> None:
    code, _, err = told("generate", tiny_run / "run", "--prompt", "hello", "stream=false")
    assert code == 0
    assert "cut off after max_new_tokens=7" in err


def test_no_model_and_no_such_model(told: Told, tmp_path: Path) -> None:
    code, _, err = told("chat")
    assert code == 2 and "needs a configuration, a model folder, or starter" in err
    code, _, err = told("export", tmp_path / "nothing")
    assert code == 2 and "nothing" in err


def test_commands_for_one_adapter_refuse_several(told: Told, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    one, two = (write(tmp_path / name, build(source), source) for name in ("one", "two"))
    for words in (
        ("generate", source, f"lora_path={one},{two}", *ASK),
        ("generate", one, f"lora_path={two}", *ASK),
        ("export", one, f"lora_path={two}", f"export_dir={tmp_path / 'e'}"),
    ):
        code, _, err = told(*words)
        assert code == 2 and f"there are 2 adapters ({one}, {two})" in err
    for words in ((source, f"lora_path={one}"), (one,), (one, f"lora_path={one}")):
        code, _, err = told("generate", *words, *ASK)
        assert code == 0 and err.count(f"adapter {one}: ") == 1
