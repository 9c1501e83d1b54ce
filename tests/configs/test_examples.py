"""Every example configuration is right, uses no key without effect, and opens with its own command."""

import json
import re
from pathlib import Path

import pytest

from erniekit.cli.plan import run as run_plan
from erniekit.config.load import load_config
from tests.house.commands import command_lines, problem
from tests.house.sources import ROOT

EXAMPLES = sorted((ROOT / "examples" / "configs").rglob("*.yaml"))
RECIPES = sorted((ROOT / "recipes").glob("*/*.yaml"))
# The verb of a file by the start of its name.
VERBS = {
    "run_sft": "train",
    "run_dpo": "train",
    "run_fc": "train",
    "dpo": "train",
    "run_pt": "train",
    "pt": "train",
    "sft": "train",
    "run_chat": "chat",
    "run_eval": "eval",
    "run_export": "export",
    "run_quantize": "quantize",
}


def verb_of(path: Path) -> str:
    stem = path.stem
    return next(verb for start, verb in VERBS.items() if stem == start or stem.startswith(start + "_"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_all_examples_are_found() -> None:
    models = {path.relative_to(ROOT / "examples/configs").parts[0] for path in EXAMPLES}
    assert {"ERNIE-4.5-0.3B", "starter"} <= models
    assert len(EXAMPLES) >= 12
    assert len(RECIPES) >= 2


@pytest.mark.parametrize("path", [*EXAMPLES, *RECIPES], ids=name_of)
def test_configuration_is_right(path: Path) -> None:
    loaded = load_config(path, (), verb=verb_of(path))
    assert loaded.notices == []


@pytest.mark.parametrize("path", [*EXAMPLES, *RECIPES], ids=name_of)
def test_header_gives_the_command_and_what_to_fetch(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    header = text[: text.index("\n\n")]
    lines = command_lines(header)
    assert f"erniekit {verb_of(path)} {name_of(path)}" in lines
    assert "erniekit models get" in header
    for line in command_lines(text):
        assert problem(line) is None, line


@pytest.mark.parametrize("path", [*EXAMPLES, *RECIPES], ids=name_of)
def test_data_it_names_is_there(path: Path) -> None:
    config = load_config(path, (), verb=verb_of(path)).config
    for files in (config.train_data.train_dataset_path, config.eval_data.eval_dataset_path):
        for file in (files or "").split(","):
            assert not file or (ROOT / file).is_file(), file


@pytest.mark.parametrize("path", [path for path in EXAMPLES if "export" not in path.name], ids=name_of)
def test_output_folders_are_one_each(path: Path) -> None:
    """Two examples that share an output folder would continue each other's runs."""
    mine = load_config(path, (), verb=verb_of(path)).config.run.output_dir
    others = [
        load_config(other, (), verb=verb_of(other)).config.run.output_dir
        for other in EXAMPLES
        if other != path and verb_of(other) == "train"
    ]
    assert mine not in others


LARGE = [path for path in EXAMPLES if "21B" in path.parts[-3] or "300B" in path.parts[-3]]
PLANNED = re.compile(
    r"# Planned for (\d+) devices of 80 GB \((.*)\): the fullest holds (\d+) GiB of the 72 that may be\n"
)


def test_all_large_examples_are_found() -> None:
    stages = {(path.parts[-3][10:], path.parts[-2]) for path in LARGE}
    assert stages >= {(size, stage) for size in ("21B-A3B", "300B-A47B") for stage in ("sft", "dpo", "pt")}
    assert len(LARGE) >= 42


@pytest.mark.parametrize("path", [path for path in LARGE if verb_of(path) == "train"], ids=name_of)
def test_its_plan_fits_and_its_header_says_so(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert run_plan([str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    said = PLANNED.search(path.read_text(encoding="utf-8"))
    if plan["devices"] == 1:
        assert said is None
        return
    assert said is not None
    layout = plan["layout"]
    axes = [f"{axis} {layout[axis]}" for axis in ("tensor", "pipeline") if layout[axis] > 1]
    assert (int(said[1]), said[2]) == (plan["devices"], " x ".join(axes))
    assert abs(int(said[3]) - plan["worst_gib"]) < 2
