"""Files and folders that appear whole or not at all.

Everything is written beside its destination under a temporary name, made durable, and renamed;
a rename within one folder is atomic on POSIX file systems. A process holds a lock on what it is
writing, and the kernel drops the lock when the process ends, however it ends: so the next run can
tell what a killed one left behind, and removes it.
"""

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from erniekit.errors import CheckpointError

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<purpose>writing|removing)-(?P<pid>\d+)$")
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the allowed size",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.EIO: "the disk reports an input/output error",
}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def explain(error: OSError, path: Path) -> CheckpointError:
    """The error for the user when writing to `path` failed."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    cause = _other_file(error, path)
    return CheckpointError(f"writing {path} failed: {reason}{f' ({cause})' if cause else ''}")


def write_file_atomic(path: Path, content: bytes) -> None:
    """Replace a file in one step; raises CheckpointError when it cannot be written."""
    temporary = _temporary(path, "writing")
    try:
        with temporary.open("wb") as file:
            _lock(file.fileno())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # the first error is the one to tell
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
    temporary = _temporary(path, "writing")
    descriptor = None
    try:
        _make_folder(path.parent)
        remove_folder(temporary)
        temporary.mkdir()
        descriptor = os.open(temporary, os.O_RDONLY)
        _lock(descriptor)
        yield temporary
        _sync_all(temporary)
        _publish(temporary, path)
    except OSError as error:
        remove_folder(temporary, ignore_errors=True)
        raise explain(error, path) from error
    except BaseException:
        remove_folder(temporary, ignore_errors=True)
        raise
    finally:
        if descriptor is not None:
            os.close(descriptor)


def discard_folder(path: Path) -> None:
    """Delete a folder so that no half of it is ever seen under its name; raises OSError."""
    doomed = _temporary(path, "removing")
    remove_folder(doomed)
    path.rename(doomed)
    remove_folder(doomed)


def clean_leftovers(folder: Path) -> list[Path]:
    """Remove what killed processes left half-written in a folder; returns what was removed."""
    removed = []
    for path in sorted(folder.iterdir()):
        match = _TEMPORARY.match(path.name)
        if match is None or _is_owned(path, int(match["pid"])):
            continue
        before = folder / match["name"].removesuffix(".old")
        if match["name"].endswith(".old") and not before.exists():
            path.rename(before)  # killed between the two renames of an overwrite: the old one stays
            continue
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
        removed.append(path)
    return removed


def remove_folder(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a folder with what is in it, if it is there."""
    if path.is_symlink():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path, ignore_errors=ignore_errors)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(temporary: Path, path: Path) -> None:
    """Give a complete folder its name; what had the name before is deleted afterwards."""
    if not path.exists():
        temporary.rename(path)
        sync_folder(path.parent)
        return
    displaced = temporary
    if not _exchange(temporary, path):
        displaced = _temporary(path.with_name(path.name + ".old"), "writing")
        path.rename(displaced)
        temporary.rename(path)
    sync_folder(path.parent)
    remove_folder(displaced)


def _exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders in one step; False where the system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    names = (os.fsencode(first), os.fsencode(second))
    return libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0


def _other_file(error: OSError, path: Path) -> Path | None:
    """The file an error is about when that is neither `path` nor part of it: one to be copied, say."""
    if error.filename is None or isinstance(error.filename, int):
        return None
    file = Path(os.fsdecode(error.filename))
    ours = file == path or any(_TEMPORARY.match(part) for part in file.parts)
    return None if ours else file


def _temporary(path: Path, purpose: str) -> Path:
    return path.with_name(f".{path.name}.{purpose}-{os.getpid()}")


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each durable."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def _lock(descriptor: int) -> None:
    # Some network file systems lock no folders; then the process id in the name has to do.
    with suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_owned(path: Path, pid: int) -> bool:
    """Whether a live process is at work on a temporary file or folder."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return _is_alive(pid)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return _is_alive(pid)
    finally:
        os.close(descriptor)
    return False


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
