"""Compiles the kernels into one shared library, once for each source, compiler and set of flags.

Every kernel file is compiled for each level of vector instructions (`LEVELS`); which of them runs is
chosen when the library is loaded, so the same file works on every machine of an architecture.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from erniekit.errors import UnsupportedError

SOURCES = Path(__file__).parent / "src"
# Compiled once, without vector instructions: threads and what asks the processor.
SHARED = ("pool.cpp", "cpu.cpp")
_X86 = {
    "portable": (0, ()),
    "avx2": (1, ("-mavx2", "-mfma", "-mf16c")),
    "avx512": (2, ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")),
    "avx512bf16": (
        3,
        (
            *("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
            *("-mavx512bf16", "-mavx512vnni"),
        ),
    ),
}
# Level by name, lowest first: its number in vec.h and its compiler flags.
LEVELS: dict[str, tuple[int, tuple[str, ...]]] = (
    _X86 if platform.machine() in ("x86_64", "AMD64") else {"portable": _X86["portable"]}
)
FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-fno-exceptions"),
    # Without it GCC splits 512-bit work into halves on some processors.
    *(("-mprefer-vector-width=512",) if len(LEVELS) > 1 else ()),
)


def compiler() -> str | None:
    """The C++ compiler: CXX of the environment, else g++ or clang++ or c++; None without one."""
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "clang++", "c++"):
        found = shutil.which(name)
        if found:
            return found
    return None


def compiler_version(program: str) -> str:
    """First line of what the compiler says of itself."""
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return (told.stdout or told.stderr).split("\n", 1)[0].strip()


def build_key(program: str, *, extra: Sequence[str] = ()) -> str:
    """A name for the library that changes with sources, compiler and flags."""
    digest = hashlib.sha256()
    for part in (compiler_version(program), platform.machine(), *FLAGS, *extra, repr(LEVELS)):
        digest.update(part.encode() + b"\0")
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def build(target: Path, program: str, *, extra: Sequence[str] = ()) -> None:
    """Compile and link the library at `target`, which appears whole or not at all.

    Raises:
        UnsupportedError: the compiler failed; holds the end of what it said.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as folder:
        work = Path(folder)
        commands = _commands(program, work, tuple(extra))
        with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
            list(pool.map(_run, commands))
        objects = [command[-1] for command in commands]
        library = work / "library.so"
        _run([program, "-shared", "-pthread", *extra, *objects, "-o", str(library)])
        os.replace(library, target)


def _commands(program: str, work: Path, extra: tuple[str, ...]) -> list[list[str]]:
    commands = []
    for path in sorted(SOURCES.glob("*.cpp")):
        if path.name in SHARED:
            commands.append([program, *FLAGS, *extra, "-c", str(path), "-o", str(work / f"{path.stem}.o")])
            continue
        for level, (number, flags) in LEVELS.items():
            defined = (f"-DEK_LEVEL={number}", f"-DEK_NS={level}")
            out = str(work / f"{path.stem}.{level}.o")
            commands.append([program, *FLAGS, *flags, *defined, *extra, "-c", str(path), "-o", out])
    return commands


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnsupportedError(f"the kernels do not compile: {' '.join(command[:1])}: {done.stderr[-2000:]}")
