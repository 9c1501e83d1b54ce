"""`erniekit eval` as a command."""

import json
from pathlib import Path

import pytest
import yaml

from erniekit.testing.tiny_run import write_run
from tests.adapters.models import disturb
from tests.cli.told import Told
from tests.train.test_contents import build, write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A configuration of all parameters whose output is empty, and beside it adapters `one` and `two`."""
    path = write_run(tmp_path, compute_type="fp32")
    for seed, name in enumerate(("one", "two")):
        built = build(tmp_path / "model")
        disturb(built.adapter, seed=seed)
        write(tmp_path / name, built, tmp_path / "model")
    return path


def losses(out: str) -> list[float]:
    decoder, found = json.JSONDecoder(), []
    while out.strip():
        row, end = decoder.raw_decode(out.strip())
        found.append(row["loss"])
        out = out.strip()[end:]
    return found


def test_every_adapter_is_evaluated(run: Path, told: Told) -> None:
    folder = run.parent
    alone = []
    for words in ((), (f"lora_path={folder}/one",), (f"lora_path={folder}/two",)):
        code, out, err = told("eval", run, "--json", *words)
        assert code == 0, err
        alone += losses(out)
    assert len(set(alone)) == len(alone) == 3
    both = f"lora_path={folder}/one,{folder}/two"
    for words in ((run,), (run, "--base")):
        code, out, err = told("eval", *words, "--json", both)
        assert code == 0 and losses(out) == alone[1:]
        assert f"evaluating {folder}/one" in err and f"evaluating {folder}/two" in err
    code, out, err = told(
        "eval", run, f"model_name_or_path={folder}/one", "--json", f"lora_path={folder}/two"
    )
    assert code == 0 and losses(out) == alone[1:]


def test_the_adapter_that_a_run_began_with_is_not_meant(run: Path, told: Told) -> None:
    folder = run.parent
    expected = losses(told("eval", run, "--json", f"lora_path={folder}/two")[1])
    out = folder / "out"
    out.mkdir()
    (folder / "two").rename(out / "checkpoint-1")
    (out / "latest").write_text("checkpoint-1\n")
    keys = yaml.safe_load(run.read_text(encoding="utf-8"))
    (out / "erniekit.yaml").write_text(json.dumps(keys | {"lora_path": f"{folder}/one"}))
    code, text, err = told("eval", out, "--json")
    assert code == 0 and losses(text) == expected, err
    code, text, err = told("export", out, f"export_dir={folder}/merged")
    assert code == 0 and "the adapter merged in fp32" in text.replace("\n", " "), err
