"""Files and folders that appear whole or not at all.

Everything is written beside its destination under a temporary name, made durable, and renamed;
a rename within one folder is atomic on POSIX file systems. What a killed process left behind
carries its process id, and is removed by the next run once that process is gone.
"""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from erniekit.errors import CheckpointError

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.writing-(?P<pid>\d+)$")
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the allowed size",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}


def explain(error: OSError, path: Path) -> CheckpointError:
    """The error for the user when writing to `path` failed."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return CheckpointError(f"writing {path} failed: {reason}")


def write_file_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step; raises CheckpointError when it cannot be written."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise explain(error, path) from error


@contextmanager
def write_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends without an error.

    Args:
        overwrite: replace a folder that exists; it stays until the new one is complete.

    Raises:
        CheckpointError: `path` exists, or the disk does not take the content; nothing is left behind.
    """
    path = Path(path)
    if path.exists() and not overwrite and (not path.is_dir() or any(path.iterdir())):
        raise CheckpointError(f"{path} exists already; name another place or delete it")
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_folder(temporary)
        temporary.mkdir()
        yield temporary
        _sync_all(temporary)
        if path.exists():
            displaced = _temporary(path.with_name(path.name + ".old"))
            path.rename(displaced)
            temporary.rename(path)
            remove_folder(displaced)
        else:
            temporary.rename(path)
        sync_folder(path.parent)
    except OSError as error:
        remove_folder(temporary)
        raise explain(error, path) from error
    except BaseException:
        remove_folder(temporary)
        raise


def clean_leftovers(folder: Path) -> list[Path]:
    """Remove what killed processes left half-written in a folder; returns what was removed."""
    removed = []
    for path in folder.iterdir():
        match = _TEMPORARY.match(path.name)
        if match and not _is_alive(int(match["pid"])):
            before = folder / match["name"].removesuffix(".old")
            if match["name"].endswith(".old") and not before.exists():
                path.rename(before)  # killed between the two renames of an overwrite: the old one stays
                continue
            if path.is_dir():
                remove_folder(path)
            else:
                path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def remove_folder(path: Path) -> None:
    """Remove a folder with what is in it, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing-{os.getpid()}")


def _is_alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_all(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(root))
