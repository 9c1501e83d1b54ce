"""`manifest.json`: name, size and SHA-256 of every file of a checkpoint, written last.

A checkpoint is good when it has a manifest and every file is as the manifest says. The manifest
also holds a running number, because the step in a checkpoint's name does not tell which one was
written last: a run that goes back to an earlier checkpoint writes lower steps after higher ones.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from erniekit.errors import CheckpointError

MANIFEST = "manifest.json"
_CHUNK = 1 << 22


def write_manifest(folder: Path, *, number: int = 0) -> None:
    """Write the manifest of all files that are in a folder now; `number` counts a run's checkpoints."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    text = json.dumps({"format": 1, "number": number, "files": files}, indent=2) + "\n"
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def verify(folder: Path, *, only: Callable[[str], bool] | None = None) -> None:
    """Check every file against the manifest.

    Args:
        only: says of a file's name whether it is to be checked, for those who read a part.

    Raises:
        CheckpointError: names the first file that is missing, truncated or changed.
    """
    for name, (size, sha256) in _entries(folder).items():
        if only is None or only(name):
            _verify_file(folder / name, size, sha256)


def read_number(folder: Path) -> int:
    """The running number of a checkpoint; 0 when its manifest cannot be read."""
    try:
        number = _read(folder).get("number", 0)
    except CheckpointError:
        return 0
    return number if isinstance(number, int) else 0


def _verify_file(file: Path, size: int, sha256: str) -> None:
    try:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        found = file.stat().st_size
        if found != size:
            raise CheckpointError(
                f"{file} is {'truncated' if found < size else 'grown'}: {found} bytes, {size} were written"
            )
        if _digest(file) != sha256:
            raise CheckpointError(f"{file} is damaged: its content is not what was written")
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror or error}") from error


def _entries(folder: Path) -> dict[str, tuple[int, str]]:
    """Name -> (size, digest), of files inside the folder only."""
    path = folder / MANIFEST
    content = _read(folder)
    try:
        files = content["files"]
        entries = {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r})") from error
    outside = [name for name in entries if name.startswith("/") or ".." in Path(name).parts]
    if outside or not entries:
        raise CheckpointError(f"{path} is damaged: it names {outside[0] if outside else 'no file'}")
    return entries


def _read(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        state = f"{folder} is no complete checkpoint" if folder.is_dir() else f"there is no folder {folder}"
        raise CheckpointError(f"{path} is missing: {state}") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it holds no JSON object")
    return content


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
