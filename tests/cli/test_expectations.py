"""Expectations of a recipe: each kind holds and fails when it should."""

import json
from pathlib import Path
from typing import Any

import pytest

from erniekit.cli.expectations import check_recipe
from erniekit.errors import ConfigError

ROWS = [
    {"step": 0, "eval_loss": 3.0},
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": 2.0},
    {"step": 2, "eval_loss": 1.5},
    {"step": 3, "eval_loss": 1.75},
]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "answer.txt").write_text("Paris.\n")
    (tmp_path / "config.json").write_text('{"model_type": "ernie4_5", "loss": NaN}')
    return tmp_path


def holds(recipe: Path, **entry: Any) -> bool:
    text = json.dumps({"expectations": [{"what": "it", "file": "log.jsonl", **entry}]})
    (recipe / "expected.json").write_text(text)
    return check_recipe(recipe)[0].holds


@pytest.mark.parametrize(
    ("row", "value"), [("first", 3.0), ("last", 1.75), ("least", 1.5), ("greatest", 3.0), (None, 1.75)]
)
def test_row_chooses_a_value(recipe: Path, row: str | None, value: float) -> None:
    entry = {"key": "eval_loss"} | ({"row": row} if row else {})
    assert holds(recipe, **entry, at_least=value, at_most=value)
    assert not holds(recipe, **entry, at_least=value + 0.1)
    assert not holds(recipe, **entry, at_most=value - 0.1)


def test_difference(recipe: Path) -> None:
    assert holds(recipe, key="eval_loss", row="last", minus="first", at_most=-1.25)
    assert not holds(recipe, key="eval_loss", row="last", minus="first", at_most=-1.26)


def test_texts_and_words(recipe: Path) -> None:
    assert holds(recipe, file="answer.txt", contains="Paris")
    assert not holds(recipe, file="answer.txt", contains="London")
    assert holds(recipe, file="config.json", key="model_type", equals="ernie4_5")
    assert not holds(recipe, file="config.json", key="model_type", equals="llama")


def test_what_is_missing_or_no_number_does_not_hold(recipe: Path) -> None:
    assert not holds(recipe, file="gone.jsonl", key="loss", at_least=0)
    assert not holds(recipe, key="accuracy", at_least=0)
    assert not holds(recipe, file="config.json", key="loss", at_least=0)
    assert not holds(recipe, file="config.json", key="loss", at_most=9)
    assert not holds(recipe, file="config.json", key="model_type", at_least=0)
    (recipe / "log.jsonl").write_text("no json\n")
    assert not holds(recipe, key="loss", at_least=0)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"kee": "loss", "at_least": 1}, "unknown kee"),
        ({"key": "loss"}, "needs what, file and one of"),
        ({"at_least": 1}, "needs key"),
        ({"key": "loss", "row": "frist", "at_least": 1}, "row is one of"),
    ],
)
def test_a_wrong_entry_is_an_error(recipe: Path, entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        holds(recipe, **entry)


def test_a_wrong_file_is_an_error(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        check_recipe(recipe)
    for text in ("{", "[]", '{"expectations": []}'):
        (recipe / "expected.json").write_text(text)
        with pytest.raises(ConfigError, match=r"expect"):
            check_recipe(recipe)
