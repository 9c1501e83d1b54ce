"""What a recipe promises (`expected.json`), compared with what a run of it left behind.

    {"expectations": [
      {"what": "held-out loss after training", "file": "output/train_log.jsonl",
       "key": "eval_loss", "row": "last", "at_least": 1.2, "at_most": 2.1},
      {"what": "held-out loss falls", "file": "output/train_log.jsonl",
       "key": "eval_loss", "row": "last", "minus": "first", "at_most": -0.3},
      {"what": "the answer names Paris", "file": "output/answer.txt", "contains": "Paris"}
    ]}

`file` is relative to the recipe. Of a .jsonl file `row` takes the first, last, least or greatest
of the values that rows have under `key`, `minus` subtracts another of them; a .json file has one
row. `equals` compares a value that is no number, `contains` looks into a text.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.errors import ConfigError, DataError

NAME = "expected.json"
_ROWS: dict[str, Callable[[list[Any]], Any]] = {
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
    "least": min,
    "greatest": max,
}
_KEYS = {"what", "file", "key", "row", "minus", "at_least", "at_most", "equals", "contains"}
_TESTS = {"at_least", "at_most", "equals", "contains"}


@dataclass(frozen=True)
class Outcome:
    """One expectation with what was found."""

    what: str
    holds: bool
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'} {self.what}: {self.found} (wanted {self.wanted})"


def check_recipe(folder: Path) -> list[Outcome]:
    """Compare every expectation of a recipe's folder.

    Raises:
        ConfigError: the folder has no expected.json, or an entry in it is wrong.
    """
    path = folder / NAME
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; name the folder of a recipe")
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["expectations"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f'{path} is not of the form {{"expectations": [...]}} ({error})') from error
    if not entries:
        raise ConfigError(f"{path} expects nothing")
    for index, entry in enumerate(entries):
        _check_entry(entry, f"{path}, entry {index + 1}")
    return [_compare(entry, folder) for entry in entries]


def _check_entry(entry: dict[str, Any], place: str) -> None:
    unknown = set(entry) - _KEYS
    if unknown:
        raise ConfigError(f"{place}: unknown {', '.join(sorted(unknown))}; known: {', '.join(sorted(_KEYS))}")
    if not {"what", "file"} <= set(entry) or not _TESTS & set(entry):
        raise ConfigError(f"{place}: needs what, file and one of {', '.join(sorted(_TESTS))}")
    for name in ("row", "minus"):
        if entry.get(name, "last") not in _ROWS:
            raise ConfigError(f"{place}: {name} is one of {', '.join(_ROWS)}, not {entry[name]}")
    if "key" not in entry and "contains" not in entry:
        raise ConfigError(f"{place}: needs key (or contains)")


def _compare(entry: dict[str, Any], folder: Path) -> Outcome:
    wanted = _wanted(entry)
    file = folder / entry["file"]
    if not file.is_file():
        return Outcome(entry["what"], False, f"{file} does not exist", wanted)
    try:
        found = file.read_text(encoding="utf-8") if "contains" in entry else _value(entry, file)
    except (DataError, ValueError) as error:
        return Outcome(entry["what"], False, str(error), wanted)
    if "contains" in entry:
        return Outcome(entry["what"], entry["contains"] in found, repr(found.strip()[:200]), wanted)
    if "equals" in entry:
        return Outcome(entry["what"], found == entry["equals"], repr(found), wanted)
    is_number = isinstance(found, int | float) and math.isfinite(found)
    # Written so that a NaN, which compares as false with everything, does not hold.
    holds = is_number and entry.get("at_least", -math.inf) <= found <= entry.get("at_most", math.inf)
    return Outcome(entry["what"], holds, f"{found:.4g}" if is_number else repr(found), wanted)


def _value(entry: dict[str, Any], file: Path) -> Any:
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines() if line]
    else:
        rows = [json.loads(text)]
    values = [row[entry["key"]] for row in rows if entry["key"] in row]
    if not values:
        raise DataError(f"{file} has no {entry['key']}")
    chosen = _ROWS[entry.get("row", "last")](values)
    return chosen - _ROWS[entry["minus"]](values) if "minus" in entry else chosen


def _wanted(entry: dict[str, Any]) -> str:
    if "contains" in entry:
        return f"a text with {entry['contains']!r}"
    if "equals" in entry:
        return repr(entry["equals"])
    parts = [f">= {entry['at_least']:g}"] if "at_least" in entry else []
    parts += [f"<= {entry['at_most']:g}"] if "at_most" in entry else []
    return " and ".join(parts)
