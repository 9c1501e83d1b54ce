"""Tables as rows: csv by byte ranges, parquet and hub ids through memory-mapped Arrow.

A csv cell is a text and stays one: `42` or `NA` is an answer, not a number or nothing. Only the
columns that cannot be texts (messages, labels, ...) are read as JSON.
"""

import csv
import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from erniekit.data.rows import BadRow, ByteRows, Index, refuse_constant
from erniekit.errors import DataError, UnsupportedError

_JSON_COLUMNS = ("messages", "conversations", "history", "tools", "label", "is_system")
_LONGEST_CELL = 1 << 30
_SECONDS = 5.0


class CsvRows(ByteRows):
    """The records of a csv file; a record may go over several lines."""

    def __init__(self, path: Path, name: str) -> None:
        csv.field_size_limit(_LONGEST_CELL)
        self._columns, index = _index_csv(path, name)
        super().__init__(path, name, index)

    def _parse(self, text: str) -> Any:
        cells = next(csv.reader(io.StringIO(text, newline=""), strict=True))
        if len(cells) != len(self._columns):
            return BadRow(f"{len(cells)} cells, but the first line names {len(self._columns)} columns")
        row: dict[str, Any] = {}
        for column, cell in zip(self._columns, cells, strict=True):
            if column not in _JSON_COLUMNS:
                row[column] = cell
            elif cell.strip():
                try:
                    row[column] = json.loads(cell, parse_constant=refuse_constant)
                except (ValueError, RecursionError) as error:
                    return BadRow(f"column {column} holds no valid JSON ({error})")
        return row


class ArrowRows:
    """A table of the `datasets` library."""

    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name

    def __len__(self) -> int:
        return len(self._table)

    def row(self, index: int) -> Any:
        return _without_nulls(self._table[index])

    def origin(self, index: int) -> str:
        return f"{self._name}:{index + 1}"


def open_parquet(path: Path, name: str) -> ArrowRows:
    """A parquet file; its rows count from 1."""
    from datasets import Dataset
    from datasets.exceptions import DatasetGenerationError

    try:
        with _quiet():
            return ArrowRows(Dataset.from_parquet(str(path)), name)
    except (DatasetGenerationError, OSError, ValueError) as error:
        raise DataError(f"{name}: not a valid parquet file ({error.__cause__ or error})") from error


def open_hub(name: str) -> ArrowRows:
    """The rows of `owner/name`, or of `owner/name:split`, from the Hugging Face hub or its cache.

    Raises:
        UnsupportedError: the hub does not answer, or does not have it.
    """
    import datasets
    import huggingface_hub

    repository, _, split = name.partition(":")
    online = _reachable(huggingface_hub.constants.ENDPOINT)
    before = datasets.config.HF_HUB_OFFLINE
    # The library itself tries for half a minute before it looks into its cache.
    datasets.config.HF_HUB_OFFLINE = before or not online
    try:
        with _quiet():
            return ArrowRows(datasets.load_dataset(repository, split=split or "train"), name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if not online:
            reason = f"{huggingface_hub.constants.ENDPOINT} does not answer, and the cache does not have it"
        raise UnsupportedError(
            f"{name}: there is no such file here, and as a hub id it cannot be fetched ({reason})"
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before


def _index_csv(path: Path, name: str) -> tuple[list[str], Index]:
    index = Index()
    position = 0

    def lines() -> Iterator[str]:
        nonlocal position
        with path.open("rb") as file:
            for line in file:
                mark = 3 if not position and line.startswith(b"\xef\xbb\xbf") else 0
                position += len(line)
                # Bytes that are no UTF-8 are told with their row, when it is read.
                yield line[mark:].decode("utf-8", "surrogateescape")

    reader = csv.reader(lines(), strict=True)
    columns: list[str] = []
    line = 1
    try:
        columns = [column.strip() for column in next(reader, [])]
        start, line = position, reader.line_num + 1
        for record in reader:
            if record:
                index.add(start, position, line)
            start, line = position, reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{name}:{line}: not valid csv ({error})") from error
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice:
        raise DataError(f"{name}:1: the column {', '.join(twice)} is there more than once")
    return columns, index


def _without_nulls(value: Any) -> Any:
    """Arrow gives every row the fields of all rows; those that a row did not have are None."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that `datasets` draws into our own view."""
    import datasets

    shown = not datasets.utils.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _reachable(endpoint: str) -> bool:
    """Whether the hub's host takes a connection within seconds; behind a proxy that is assumed."""
    if {"https", "all"} & set(getproxies()):
        return True
    parts = urlsplit(endpoint)
    address = (parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443))
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection(address, timeout=_SECONDS).close()
        except OSError:
            return
        answers.append(True)

    # In a thread, because looking up the name has no time limit of its own.
    thread = Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return bool(answers)
