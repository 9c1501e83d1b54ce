"""`manifest.json`: name, size and SHA-256 of every file of a checkpoint, written last.

A checkpoint is good when it has a manifest and every file is as the manifest says.
"""

import hashlib
import json
from pathlib import Path

from erniekit.errors import CheckpointError

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the manifest of all files that are in a folder now."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    text = json.dumps({"format": 1, "files": files}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def verify(folder: Path) -> None:
    """Check every file against the manifest.

    Raises:
        CheckpointError: names the first file that is missing, truncated or changed.
    """
    path = folder / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing: {folder} is no complete checkpoint") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r})") from error
    for name, entry in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        size = file.stat().st_size
        if size != entry["size"]:
            raise CheckpointError(f"{file} is truncated or grown: {size} bytes, {entry['size']} were written")
        if _digest(file) != entry["sha256"]:
            raise CheckpointError(f"{file} is damaged: its content is not what was written")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
