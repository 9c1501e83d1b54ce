"""Rows of files by number: every source is a random-access sequence with bounded memory.

Random access is what makes shuffling exact and resuming free: the loader asks for row 4711 of a
file, it never replays the rows before it.

* jsonl, plain text: an index of the byte offset of every line; a row is read when it is asked for.
* json arrays: parsed once; the line of every element is kept for messages.
* parquet, csv, hub ids: through `datasets`, memory-mapped Arrow files.
* .gz: unpacked once into the cache folder of the system.
"""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from erniekit.errors import DataError, UnsupportedError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")


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


class LineRows:
    """A jsonl file, or a text file whose documents are separated by blank lines."""

    def __init__(self, path: Path, name: str, *, text: bool) -> None:
        self._path, self._name, self._text = path, name, text
        self._starts, self._stops, self._lines = _index_documents(path) if text else _index_lines(path)
        self._file: Any = None
        self._pid = 0

    def __len__(self) -> int:
        return len(self._starts)

    def origin(self, index: int) -> str:
        return f"{self._name}:{self._lines[index]}"

    def row(self, index: int) -> Any:
        if self._file is None or self._pid != os.getpid():
            self._file, self._pid = self._path.open("rb"), os.getpid()
        data = os.pread(
            self._file.fileno(), int(self._stops[index] - self._starts[index]), int(self._starts[index])
        )
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            return BadRow(
                f"byte {int(self._starts[index]) + error.start} is no UTF-8; convert the file, for example "
                "with "
                "iconv -f LATIN1 -t UTF-8"
            )
        if self._text:
            return {"text": text.strip("\r\n")}
        try:
            return json.loads(text)
        except ValueError as error:
            column = getattr(error, "colno", None)
            return BadRow(f"not valid JSON (column {column}: {getattr(error, 'msg', error)})")
        except RecursionError:
            return BadRow("not valid JSON (nested too deeply)")


class ListRows:
    """A json array, parsed as a whole."""

    def __init__(self, rows: Sequence[Any], lines: Sequence[int], name: str) -> None:
        self._rows, self._lines, self._name = rows, lines, name

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Any:
        return self._rows[index]

    def origin(self, index: int) -> str:
        return f"{self._name}:{self._lines[index]}"


class ArrowRows:
    """A table of the `datasets` library."""

    def __init__(self, table: Any, name: str, first_line: int) -> None:
        self._table, self._name, self._first_line = table, name, first_line

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Any:
        return {key: value for key, value in self._table[index].items() if value is not None}

    def origin(self, index: int) -> str:
        return f"{self._name}:{index + self._first_line}"


def open_rows(path: str) -> list[Rows]:
    """The rows of a file, a folder, a glob, or a hub id; one sequence a file.

    Raises:
        DataError: there is no such file, or it is empty, or no format we know.
        UnsupportedError: a hub id, and the hub does not answer.
    """
    files = find_files(path)
    if files is None:
        return [_open_hub(path)]
    return [_open_file(file) for file in files]


def find_files(path: str) -> list[Path] | None:
    """Files that a path stands for, sorted; None when it looks like a hub id.

    Raises:
        DataError: nothing is there; names what is similar.
    """
    place = Path(path).expanduser()
    if place.is_file():
        return [place]
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if _suffix(file) in SUFFIXES)
        if not files:
            raise DataError(f"{path}: the folder holds no {', '.join(SUFFIXES)} file")
        return files
    if any(letter in path for letter in "*?["):
        base = Path(place.anchor) if place.is_absolute() else Path()
        pattern = str(place.relative_to(place.anchor)) if place.is_absolute() else str(place)
        files = sorted(file for file in base.glob(pattern) if file.is_file())
        if not files:
            raise DataError(f"{path}: no file matches this pattern")
        return files
    if path.count("/") == 1 and not _suffix(place) and not path.startswith((".", "/", "~")):
        return None
    beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    close = get_close_matches(place.name, beside, n=3, cutoff=0.6)
    hint = f"; similar names there: {', '.join(close)}" if close else ""
    raise DataError(f"{path}: there is no such file or folder{hint}")


def _suffix(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return Path(name).suffix.lower()


def _open_file(path: Path) -> Rows:
    name, suffix = str(path), _suffix(path)
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty")
    if path.suffix == ".gz":
        path = _unpack(path)
    rows: Rows
    if suffix == ".txt":
        rows = LineRows(path, name, text=True)
    elif suffix == ".jsonl" or (suffix == ".json" and not _is_array(path)):
        rows = LineRows(path, name, text=False)
    elif suffix == ".json":
        rows = _open_array(path, name)
    elif suffix in (".parquet", ".csv"):
        rows = _open_arrow(path, name, suffix[1:])
    else:
        raise DataError(
            f"{name}: files of type {suffix or '(none)'} are not read; known: {', '.join(SUFFIXES)}"
        )
    if not len(rows):
        raise DataError(f"{name}: the file holds no row")
    return rows


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"[")


def _open_array(path: Path, name: str) -> ListRows:
    """Parse element by element, so that each has its line and an error has its place."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start} is no UTF-8; convert the file first") from error
    decoder = json.JSONDecoder()
    rows: list[Any] = []
    lines: list[int] = []
    position, line, counted = _skip(text, text.index("[") + 1), 1, 0
    while True:
        position = _skip(text, position)
        if position < len(text) and text[position] == "]":
            return ListRows(rows, lines, name)
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError as error:
            where, column = getattr(error, "lineno", line), getattr(error, "colno", 1)
            message = getattr(error, "msg", error)
            raise DataError(f"{name}:{where}: not valid JSON (column {column}: {message})") from error
        rows.append(value)
        lines.append(line)
        position = _skip(text, position)
        if position < len(text) and text[position] == ",":
            position += 1
        elif position >= len(text) or text[position] != "]":
            raise DataError(f"{name}:{line}: not valid JSON (a comma or ] must follow this element)")


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _index_lines(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Byte ranges and line numbers of the lines that are not blank."""
    starts, stops, lines = [], [], []
    position = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start = position + (3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0)
            position += len(line)
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                starts.append(start)
                stops.append(position)
                lines.append(number)
    return np.array(starts, np.int64), np.array(stops, np.int64), np.array(lines, np.int64)


def _index_documents(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Byte ranges and first lines of the documents between blank lines."""
    starts: list[int] = []
    stops: list[int] = []
    lines: list[int] = []
    position = 0
    inside = False
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            start = position + (3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0)
            position += len(line)
            if not line.strip(b"\xef\xbb\xbf \t\r\n"):
                inside = False
            elif inside:
                stops[-1] = position
            else:
                starts.append(start)
                stops.append(position)
                lines.append(number)
                inside = True
    return np.array(starts, np.int64), np.array(stops, np.int64), np.array(lines, np.int64)


def _unpack(path: Path) -> Path:
    """Unpack a .gz into the system's temporary folder, once for each content."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"erniekit-unpacked-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    target = folder / key
    if not target.exists():
        part = folder / f"{key}.{os.getpid()}"
        try:
            with gzip.open(path, "rb") as source, part.open("wb") as unpacked:
                shutil.copyfileobj(source, unpacked, 1 << 20)
        except (OSError, EOFError) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{path}: the archive cannot be unpacked ({error})") from error
        part.rename(target)
    return target


def _open_arrow(path: Path, name: str, kind: str) -> ArrowRows:
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        table = Dataset.from_parquet(str(path)) if kind == "parquet" else Dataset.from_csv(str(path))
    except (DatasetGenerationError, OSError, ValueError) as error:
        reason = error.__cause__ or error
        raise DataError(f"{name}: not a valid {kind} file ({reason})") from error
    # Line 1 of a csv holds the names of the columns; rows of a parquet file count from 1.
    return ArrowRows(table, name, 2 if kind == "csv" else 1)


def _open_hub(path: str) -> ArrowRows:
    from datasets import load_dataset

    try:
        return ArrowRows(load_dataset(path, split="train"), path, 1)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedError(
            f"{path}: there is no such file here, and as a hub id it cannot be fetched ({reason})"
        ) from error


def iterate(rows: Rows) -> Iterator[tuple[int, Any]]:
    """Every row with its number."""
    for index in range(len(rows)):
        yield index, rows.row(index)
