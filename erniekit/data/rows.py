"""Rows of a file by number, with bounded memory.

Random access is what makes shuffling exact and resuming free: the loader asks for row 4711 of a
file, it never replays the rows before it. What is kept in memory is where each row begins and
ends (24 bytes a row); a row is read when it is asked for.
"""

import json
import os
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BLANK = _BYTE_ORDER_MARK + b" \t\r\n"


@dataclass(frozen=True)
class BadRow:
    """A row that is no row, kept so that its number and reason can be told."""

    reason: str


class Rows(Protocol):
    """A file as a sequence of rows."""

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any:
        """The parsed row, or a BadRow."""

    def origin(self, index: int) -> str:
        """`file:line` of a row."""


class Index:
    """Where the rows of a file are: byte ranges and the number of their first line."""

    def __init__(self) -> None:
        self._starts, self._stops, self._lines = array("q"), array("q"), array("q")

    def add(self, start: int, stop: int, line: int) -> None:
        """Append a row."""
        self._starts.append(start)
        self._stops.append(stop)
        self._lines.append(line)

    def extend(self, stop: int) -> None:
        """Let the last row end later."""
        self._stops[-1] = stop

    def columns(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts, stops and lines, int64 [N] each."""
        starts, stops, lines = (np.array(column) for column in (self._starts, self._stops, self._lines))
        return starts, stops, lines


class ByteRows:
    """Rows that are byte ranges of a file; a subclass says what the bytes mean."""

    def __init__(self, path: Path, name: str, index: Index) -> None:
        """Args:
        path: the file that is read.
        name: how messages call it; differs from the path for an unpacked one.
        """
        self._path, self._name = path, name
        self._starts, self._stops, self._lines = index.columns()

    def __len__(self) -> int:
        return len(self._starts)

    def origin(self, index: int) -> str:
        return f"{self._name}:{self._lines[index]}"

    def row(self, index: int) -> Any:
        start, stop = int(self._starts[index]), int(self._stops[index])
        # Opened for each row: a folder may have more files than a process may keep open.
        with self._path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), stop - start, start)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadRow(not_utf8(start + error.start))
        return self._parse(text)

    def _parse(self, text: str) -> Any:
        raise NotImplementedError


class JsonRows(ByteRows):
    """Rows that are JSON each: lines of a .jsonl file, elements of an array."""

    def _parse(self, text: str) -> Any:
        try:
            return json.loads(text, parse_constant=refuse_constant)
        except json.JSONDecodeError as error:
            return BadRow(f"not valid JSON (column {error.colno}: {error.msg})")
        except ValueError as error:
            return BadRow(f"not valid JSON ({error})")
        except RecursionError:
            return BadRow("not valid JSON (nested too deeply)")


class TextRows(ByteRows):
    """Documents of plain text."""

    def _parse(self, text: str) -> Any:
        return {"text": text.strip("\r\n")}


def refuse_constant(word: str) -> None:
    """Python reads NaN and Infinity, which are no JSON and mean that something went wrong before."""
    raise ValueError(f"{word} is no JSON value")


def not_utf8(position: int) -> str:
    """The reason of a row that cannot be decoded."""
    return (
        f"byte {position} is no UTF-8; convert the file, for example with "
        "iconv -f LATIN1 -t UTF-8 (UTF-16 for files that start with the bytes FF FE)"
    )


def index_lines(path: Path) -> Index:
    """The lines that are not blank."""
    index = Index()
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start = position + _mark(number, line)
            position += len(line)
            if line.strip(_BLANK):
                index.add(start, position, number)
    return index


def index_documents(path: Path) -> Index:
    """The documents between blank lines."""
    index = Index()
    position = 0
    inside = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start = position + _mark(number, line)
            position += len(line)
            if not line.strip(_BLANK):
                inside = False
            elif inside:
                index.extend(position)
            else:
                index.add(start, position, number)
                inside = True
    return index


def _mark(number: int, line: bytes) -> int:
    """Bytes of the mark that some editors put at the beginning of a file."""
    return len(_BYTE_ORDER_MARK) if number == 1 and line.startswith(_BYTE_ORDER_MARK) else 0
