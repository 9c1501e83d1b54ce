"""Files of questions: one a line, answered in order into another file.

A row of a `.jsonl` file holds `messages` and `tools` (as in training data), or `prompt`, or `src` of the
`erniekit` format, or `instruction` (and `input`) of the `alpaca` format; in any other file a line
is a prompt. What else a row holds is carried into the answer's row.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.data.formats import RowError, tools_of, with_read_calls
from erniekit.errors import DataError
from erniekit.generate.conversation import Message, check_messages


@dataclass(frozen=True)
class Question:
    """One row: where it stands, what it held, and what is asked."""

    origin: str
    row: dict[str, Any]
    messages: list[Message]
    tools: list[Any] | None = None

    @property
    def text(self) -> str:
        """The last message alone, for a model that continues plain text."""
        return str(self.messages[-1]["content"])


def read_questions(path: Path) -> Iterator[Question]:
    """Questions of a file, in order; empty lines are skipped.

    Raises:
        DataError: with file and line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse_question(line, f"{path}:{number}", is_json=path.suffix in (".jsonl", ".json"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); convert it to UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def parse_question(line: str, origin: str, *, is_json: bool) -> Question:
    """One line of a file of questions.

    Raises:
        DataError: the line is no JSON object, or asks nothing.
    """
    if not is_json:
        text = line.rstrip("\n")
        return Question(origin, {"prompt": text}, [{"role": "user", "content": text}])
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{origin}: not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise DataError(f"{origin}: expected a JSON object, found {type(row).__name__}")
    messages = check_messages(_messages(row, origin), origin)
    try:
        return Question(origin, row, with_read_calls(messages), tools_of(row))
    except RowError as error:
        raise DataError(f"{origin}: {error}") from error


def _messages(row: dict[str, Any], origin: str) -> list[Message]:
    if "messages" in row:
        return row["messages"]
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    if "prompt" in row:
        return [*system, {"role": "user", "content": _text(row, "prompt", origin)}]
    if "instruction" in row:
        parts = [_text(row, key, origin) for key in ("instruction", "input") if row.get(key)]
        return [*system, {"role": "user", "content": "\n".join(parts)}]
    if "src" in row:
        return system + _of_erniekit(row, origin)
    has = ", ".join(row) or "nothing"
    raise DataError(f"{origin}: no prompt, messages, instruction or src in this row; it has {has}")


def _of_erniekit(row: dict[str, Any], origin: str) -> list[Message]:
    """Earlier turns from src and tgt; the last src is the question, its tgt (if any) the known answer."""
    sources, targets = (
        [value] if isinstance(value, str) else list(value) for value in (row["src"], row.get("tgt") or [])
    )
    if not sources or not all(isinstance(text, str) for text in sources + targets):
        raise DataError(f"{origin}: src and tgt must be texts or lists of texts")
    if len(targets) < len(sources) - 1:
        needed = f"{len(sources)} src need at least {len(sources) - 1} tgt"
        raise DataError(f"{origin}: {needed}, found {len(targets)}")
    messages: list[Message] = []
    for source, target in zip(sources[:-1], targets, strict=False):
        messages += [{"role": "user", "content": source}, {"role": "assistant", "content": target}]
    return [*messages, {"role": "user", "content": sources[-1]}]


def _text(row: dict[str, Any], key: str, origin: str) -> str:
    if not isinstance(row[key], str):
        raise DataError(f"{origin}: {key} must be a text, found {type(row[key]).__name__}")
    return row[key]
