"""Recipes are complete, and their expectations would notice a broken trainer."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from erniekit.cli.expectations import check_recipe
from tests.house.commands import command_lines, problem
from tests.house.sources import ROOT

RECIPES = sorted(path.parent for path in (ROOT / "recipes").glob("*/run.sh"))

# What the quickstart wrote when it was right: first and last rows of its log.
GOOD: list[dict[str, Any]] = [
    {"step": 0, "eval_loss": 3.9025, "eval_accuracy": 0.2529, "eval_num_tokens": 514},
    {"step": 1, "loss": 3.6404, "grad_norm": 13.7093, "tokens": 190},
    {"step": 22, "loss": 2.6419, "grad_norm": 7.0253, "tokens": 4010},
    {"step": 22, "eval_loss": 2.4839, "eval_accuracy": 0.4494, "eval_num_tokens": 514},
]


def test_recipes_are_found() -> None:
    assert [recipe.name for recipe in RECIPES][:2] == ["00-quickstart", "01-sft"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_complete(recipe: Path) -> None:
    for name in ("README.md", "run.sh", "expected.json"):
        assert (recipe / name).is_file()
    assert list(recipe.glob("*.yaml"))
    outcomes = check_recipe(recipe)
    assert len(outcomes) >= 4
    assert len({outcome.what for outcome in outcomes}) == len(outcomes)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_commands_of_the_script_are_accepted(recipe: Path) -> None:
    script = (recipe / "run.sh").read_text(encoding="utf-8")
    assert subprocess.run(["sh", "-n", str(recipe / "run.sh")], check=False).returncode == 0
    config = re.search(r"^config=\$recipe/(\S+)$", script, re.MULTILINE)
    values = {
        **({"$config": f"recipes/{recipe.name}/{config[1]}"} if config else {}),
        "$output": "output",
        "$recipe/": f"recipes/{recipe.name}/",
        "$recipe": "recipe",
    }
    for name, value in values.items():
        script = script.replace(name, value)
    lines = command_lines(re.sub(' 2?>"', ' > "', script).replace('"$question"', '"a question"'))
    assert len(lines) >= 7
    assert [(line, problem(line)) for line in lines if problem(line)] == []


def quickstart(tmp_path: Path, rows: list[dict[str, Any]], answer: str = "Paris.") -> list[bool]:
    """Whether each expectation holds after a run that left these rows and this answer."""
    shutil.copy(ROOT / "recipes/00-quickstart/expected.json", tmp_path)
    for layout in ("hf", "paddle"):
        (tmp_path / f"output/export-{layout}").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"output/export-{layout}/config.json").write_text('{"model_type": "ernie4_5"}')
    (tmp_path / "output/train_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "output/answer.txt").write_text(answer)
    return [outcome.holds for outcome in check_recipe(tmp_path)]


def changed(**changes: dict[int, float]) -> list[dict[str, Any]]:
    """The good rows with some values replaced: key -> {row: value}."""
    rows = [dict(row) for row in GOOD]
    for key, values in changes.items():
        for index, value in values.items():
            rows[index][key] = value
    return rows


def test_a_right_run_holds(tmp_path: Path) -> None:
    assert all(quickstart(tmp_path, GOOD))


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(changed(eval_loss={3: 3.9025}, eval_accuracy={3: 0.2529}), id="no update"),
        pytest.param(changed(eval_loss={0: 11.2, 3: 6.0}), id="labels one place off"),
        pytest.param(changed(tokens={2: 10019}), id="mask over everything"),
        pytest.param(changed(eval_num_tokens={3: 1577}), id="held-out mask over everything"),
        pytest.param(changed(grad_norm={1: 13.7 * 190}), id="gradient of a sum"),
        pytest.param(changed(loss={1: 4.4}), id="attention across samples"),
        pytest.param(changed(eval_loss={3: 0.4}), id="held-out rows trained on"),
        pytest.param(changed(eval_loss={3: float("nan")}), id="not a number"),
    ],
)
def test_a_broken_trainer_is_noticed(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    assert not all(quickstart(tmp_path, rows))


def test_a_broken_export_is_noticed(tmp_path: Path) -> None:
    assert not all(quickstart(tmp_path, GOOD, answer="the the the"))
