"""The loaded library of kernels: where it is, which level of instructions runs, its functions by name.

The library is looked for in the package (where `pip install` puts it), then in the cache folder,
and is compiled into the cache when it is in neither. A library that was damaged on the disk is not
loaded (the loader would end the process), but compiled again.
"""

import ctypes
import fcntl
import json
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from erniekit.errors import UnsupportedError
from erniekit.log import logger
from erniekit.ops.kernels import build
from erniekit.ops.kernels.build import LEVELS, BuildError

PACKAGED = Path(__file__).parent / "built"
# In a clone compiled files are kept: a change of one source compiles only that one.
_CLONE = Path(__file__).parents[3] / ".git"
LEVEL_VARIABLE = "ERNIEKIT_KERNEL_LEVEL"
FP32, BF16 = 0, 1


class Library:
    """Functions of one level. `lib.declare(name, ...)` gives the C function `name` of that level."""

    def __init__(self, folder: Path, level: str | None = None) -> None:
        """Load the library of a folder.

        Args:
            level: a row of `LEVELS`; None takes the best that was compiled and runs here.

        Raises:
            UnsupportedError: the level does not run here.
            OSError: the file is no library.
        """
        self.folder = folder
        self.record: dict[str, Any] = read_record(folder) or {}
        self._library = ctypes.CDLL(str(folder / build.LIBRARY))
        runs = list(LEVELS)[: self._library.ek_cpu_level() + 1]
        built = [name for name in runs if name in self.record["levels"]]
        self.level = level or built[-1]
        if self.level not in built:
            raise UnsupportedError(
                f"kernels for {self.level} do not run here; those that do: {', '.join(built)}"
            )
        self._functions: dict[str, Any] = {}
        self._take = self._library.ek_memory_take
        self._take.argtypes, self._take.restype = [ctypes.c_size_t], ctypes.c_void_p
        self.give_memory = self._library.ek_memory_give
        self.give_memory.argtypes = [ctypes.c_void_p]

    def set_threads(self, threads: int) -> None:
        """Number of threads of every call from now on."""
        self._library.ek_set_threads(threads)

    def take_memory(self, num_bytes: int) -> int | None:
        """Address of whole pages, to be given back by `give_memory`; None when there are none."""
        return self._take(num_bytes)

    def memory_state(self) -> tuple[int, int]:
        """Bytes that are taken, and the number of free places between them."""
        taken, places = ctypes.c_size_t(), ctypes.c_size_t()
        self._library.ek_memory_state(ctypes.byref(taken), ctypes.byref(places))
        return taken.value, places.value

    def use_onednn(self, path: Path | None) -> bool:
        """Hand bf16 products to the oneDNN at `path`, or take them back (None); True when oneDNN has them."""
        opened = path is not None and self._library.ek_onednn_open(str(path).encode()) == 0
        self._library.ek_onednn_use(opened)
        return opened

    @property
    def threads(self) -> int:
        """Number of threads that share the work of a call."""
        return int(self._library.ek_get_threads())

    def declare(self, name: str, *types: Any, result: Any = None) -> Any:
        """The C function `name` of this level with its argument types; kept for the next time."""
        function = self._functions.get(name)
        if function is None:
            function = getattr(self._library, f"{name}__{self.level}")
            function.argtypes = types
            function.restype = result
            self._functions[name] = function
        return function


@dataclass(frozen=True)
class Found:
    """The library that runs here, or the reason why there is none."""

    library: Library | None
    reason: str = ""


@lru_cache
def find_library() -> Found:
    """The library of this process, or why there is none; looked for (and compiled) once."""
    try:
        return Found(load())
    except UnsupportedError as error:
        return Found(None, str(error))


@lru_cache
def load(level: str | None = None) -> Library:
    """The library, compiled first where that has not happened yet.

    Args:
        level: a row of `LEVELS`; None takes ERNIEKIT_KERNEL_LEVEL, or the best that runs here.

    Raises:
        UnsupportedError: there is none and no compiler, the compiler failed, or the cache folder cannot
            be written; says which.
    """
    level = level or os.environ.get(LEVEL_VARIABLE) or None
    try:
        folder = _locate()
    except (BuildError, OSError) as error:
        raise UnsupportedError(f"the native kernels could not be built: {error}") from error
    try:
        library = Library(folder, level)
    except (OSError, AttributeError) as error:
        raise UnsupportedError(f"the native kernels in {folder} could not be loaded: {error}") from error
    library.set_threads(wanted_threads())
    if library.level == "avx512bf16" and has_matrix_tiles():
        library.use_onednn(onednn_path())
    return library


def has_matrix_tiles() -> bool:
    """Whether the processor has AMX with bf16, which oneDNN uses and our own inner loop does not."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and "amx_bf16" in cpuinfo.read_text(encoding="utf-8", errors="replace")


def onednn_path() -> Path | None:
    """The oneDNN that lies in Paddle's wheel; None without Paddle, or in a wheel that has none."""
    spec = find_spec("paddle")
    if spec is None or spec.origin is None:
        return None
    found = sorted((Path(spec.origin).parent / "libs").glob("libdnnl.so*"))
    return found[0] if found else None


def _locate() -> Path:
    """The folder of a library made from these sources; builds it where there is none."""
    if not build.extra_flags() and is_whole(PACKAGED) and _from_these_sources(PACKAGED):
        return PACKAGED
    cache = cache_folder()
    try:
        program = build.compiler()
    except BuildError:
        return _built_before(cache)
    folder = cache / build.build_key(program)
    if not is_whole(folder):
        _build_alone(folder, program)
    return folder


def _built_before(cache: Path) -> Path:
    """A library of an earlier time, when there was a compiler."""
    for folder in sorted(cache.iterdir()) if cache.is_dir() else ():
        record = read_record(folder) or {}
        if _from_these_sources(folder) and record["flags"] == list(build.extra_flags()) and is_whole(folder):
            return folder
    build.compiler()  # raises: there is none, and that is the reason
    raise AssertionError("a compiler appeared while it was looked for")


def _build_alone(folder: Path, program: tuple[str, ...]) -> None:
    """Build, one process at a time; the others wait and find it done."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if is_whole(folder):
            return
        logger.info(f"compiling the native kernels (once) into {folder}")
        build.build(folder, program, objects=folder.parent / "objects" if _CLONE.exists() else None)


def read_record(folder: Path) -> dict[str, Any] | None:
    """What `build` wrote beside a library; None where there is nothing readable."""
    try:
        record = json.loads((folder / build.RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a library that is what `build` wrote."""
    record = read_record(folder)
    path = folder / build.LIBRARY
    return record is not None and path.is_file() and build.file_digest(path) == record.get("sha256")


def _from_these_sources(folder: Path) -> bool:
    record = read_record(folder)
    return record is not None and record.get("sources") == build.source_digest()


def cache_folder() -> Path:
    """Where libraries that were compiled at first use are kept: in ERNIEKIT_CACHE, else ~/.cache/erniekit."""
    return Path(os.environ.get("ERNIEKIT_CACHE") or Path.home() / ".cache" / "erniekit") / "kernels"


def wanted_threads() -> int:
    """OMP_NUM_THREADS, which `cli/launch.py` sets to the usable cores; else those cores."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0))
