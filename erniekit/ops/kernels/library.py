"""The loaded library of kernels: which level of instructions runs, and its functions by name.

The library is looked for in the package (where `pip install` puts it), then in the cache folder,
and is compiled into the cache when it is in neither.
"""

import ctypes
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from erniekit.errors import UnsupportedError
from erniekit.ops.kernels.build import LEVELS, build, build_key, compiler

PACKAGED = Path(__file__).parent / "built" / "kernels.so"
FP32, BF16 = 0, 1


class Library:
    """Functions of one level. `lib.name(...)` calls the C function `name` of that level."""

    def __init__(self, path: Path, level: str | None = None) -> None:
        self.path = path
        self._library = ctypes.CDLL(str(path))
        best = list(LEVELS)[min(self._library.ek_cpu_level(), len(LEVELS) - 1)]
        self.level = level or best
        if list(LEVELS).index(self.level) > list(LEVELS).index(best):
            raise UnsupportedError(f"this processor runs {best} at most, not {self.level}")
        self._functions: dict[str, Any] = {}

    def set_threads(self, threads: int) -> None:
        """Number of threads of every call from now on."""
        self._library.ek_set_threads(threads)

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


@lru_cache
def load(level: str | None = None) -> Library:
    """The library, compiled first where that has not happened yet.

    Args:
        level: a row of `LEVELS`; None takes ERNIEKIT_KERNEL_LEVEL, or the best that runs here.

    Raises:
        UnsupportedError: there is none and no compiler, or the compiler failed.
    """
    level = level or os.environ.get("ERNIEKIT_KERNEL_LEVEL")
    path = locate()
    library = Library(path, level)
    library.set_threads(wanted_threads())
    return library


def locate() -> Path:
    """The file of the library; builds it where there is none."""
    if PACKAGED.exists():
        return PACKAGED
    program = compiler()
    if program is None:
        raise UnsupportedError("the kernels have not been built, and there is no C++ compiler (g++ or clang++)")
    path = cache_folder() / build_key(program) / "kernels.so"
    if not path.exists():
        build(path, program)
    return path


def cache_folder() -> Path:
    """Where libraries that were compiled at first use are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "erniekit" / "kernels"


def wanted_threads() -> int:
    """OMP_NUM_THREADS, which `cli/launch.py` sets to the usable cores; else those cores."""
    try:
        return max(1, int(os.environ["OMP_NUM_THREADS"]))
    except (KeyError, ValueError):
        return len(os.sched_getaffinity(0))
