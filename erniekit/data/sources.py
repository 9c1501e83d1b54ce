"""From what a `..._dataset_path` says to files, and from files to rows.

* .jsonl, .json (an array, or one object a line), .csv, .txt: byte ranges of the file.
* .parquet, hub ids: memory-mapped Arrow.
* .gz of each: unpacked once into a folder of the system's temporary files.
"""

import gzip
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from difflib import get_close_matches
from pathlib import Path

from erniekit.data.arrays import index_array
from erniekit.data.rows import JsonRows, Rows, TextRows, index_documents, index_lines
from erniekit.data.tables import CsvRows, open_hub, open_parquet
from erniekit.errors import DataError

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".txt")
_SMALL = 1 << 26


def open_rows(path: str) -> list[Rows]:
    """The rows of a file, a folder, a glob, or a hub id; one sequence a file.

    Raises:
        DataError: there is no such file, or it is empty, unreadable, or of no format we know.
        UnsupportedError: a hub id, and the hub does not answer.
    """
    files = find_files(path)
    if files is None:
        return [open_hub(path)]
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
        files = sorted(file for file in place.iterdir() if file.is_file() and _suffix(file) in SUFFIXES)
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
    owner, slash, rest = path.partition("/")
    is_hub_id = bool(owner and slash and rest) and "/" not in rest and not path.startswith((".", "~"))
    if is_hub_id and not _suffix(place) and not Path(owner).exists():
        return None
    raise DataError(f"{path}: there is no such file or folder{_hint(place)}")


def _hint(place: Path) -> str:
    """What is similar to a path that does not exist."""
    if not place.parent.is_dir():
        nearest = next(parent for parent in place.absolute().parents if parent.is_dir())
        return f"; of its folders, {nearest} is the last one that exists"
    close = get_close_matches(place.name, [entry.name for entry in place.parent.iterdir()], n=3, cutoff=0.6)
    return f"; similar names there: {', '.join(close)}" if close else ""


def _suffix(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return Path(name).suffix.lower()


def _open_file(path: Path) -> Rows:
    name, suffix = str(path), _suffix(path)
    if suffix not in SUFFIXES:
        raise DataError(
            f"{name}: files of type {suffix or '(none)'} are not read; known: {', '.join(SUFFIXES)}"
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{name}: the file is empty")
        rows = _rows(_unpack(path) if path.suffix == ".gz" else path, name, suffix)
    except OSError as error:
        raise DataError(f"{name}: the file cannot be read ({error.strerror or error})") from error
    if not len(rows):
        raise DataError(f"{name}: the file holds no row")
    return rows


def _rows(path: Path, name: str, suffix: str) -> Rows:
    if suffix == ".txt":
        return TextRows(path, name, index_documents(path))
    if suffix == ".csv":
        return CsvRows(path, name)
    if suffix == ".parquet":
        return open_parquet(path, name)
    if suffix == ".json":
        if _is_array(path):
            return JsonRows(path, name, index_array(path, name))
        _refuse_one_object(path, name)
    return JsonRows(path, name, index_lines(path))


def _is_array(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n")
    return start.startswith(b"[")


def _refuse_one_object(path: Path, name: str) -> None:
    """A .json file that is a single object over several lines is no list of rows."""
    if path.stat().st_size > _SMALL:
        return
    data = path.read_bytes()
    if len(data.strip().splitlines()) < 2:
        return
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        return
    keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise DataError(
        f"{name}: the file is one JSON object ({keys}), not a list of rows; write an array of objects, "
        "or one object a line"
    )


def _unpack(path: Path) -> Path:
    """Unpack a .gz into the system's temporary folder, once for each content."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:24]
    folder = Path(tempfile.gettempdir()) / f"erniekit-unpacked-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # The folder for temporary files belongs to everybody: somebody else may have made ours.
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise DataError(f"{path}: cannot be unpacked, because {folder} belongs to somebody else")
    target = folder / key
    if not target.exists():
        part = folder / f"{key}.{os.getpid()}"
        try:
            with gzip.open(path, "rb") as source, part.open("wb") as unpacked:
                shutil.copyfileobj(source, unpacked, 1 << 20)
        except (OSError, EOFError, zlib.error) as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{path}: the archive cannot be unpacked ({error})") from error
        part.rename(target)
    return target
