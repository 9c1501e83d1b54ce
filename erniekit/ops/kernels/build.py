"""Compiles the kernels into one shared library, once for each source, compiler and set of flags.

Every kernel file is compiled for each level of vector instructions (`LEVELS`); which of them runs is
chosen when the library is loaded, so the same file works on every machine of an architecture. A level
that the compiler does not know is left out.

`setup.py` runs this file without the package around it: it imports nothing of ErnieKit.
"""

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARY, RECORD = "kernels.so", "record.json"
# Compiled once, without vector instructions: threads and what asks the processor.
SHARED = ("pool.cpp", "cpu.cpp", "onednn.cpp", "memory.cpp")
# Flags for experiments and for the sanitizers; they are part of the library's key.
FLAGS_VARIABLE = "ERNIEKIT_KERNEL_FLAGS"
_AVX512 = ("-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_X86 = {
    "portable": (0, ()),
    "avx2": (1, ("-mavx2", "-mfma", "-mf16c")),
    "avx512": (2, _AVX512),
    "avx512bf16": (3, (*_AVX512, "-mavx512bf16", "-mavx512vnni")),
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
_SECONDS = 900


class BuildError(Exception):
    """The kernels cannot be compiled here; says why."""


def compiler() -> tuple[str, ...]:
    """The C++ compiler as a command: CXX of the environment, else g++, clang++ or c++.

    Raises:
        BuildError: there is none.
    """
    wanted = os.environ.get("CXX")
    for command in (shlex.split(wanted),) if wanted else (["g++"], ["clang++"], ["c++"]):
        found = shutil.which(command[0])
        if found:
            return (found, *command[1:])
    raise BuildError(
        f"CXX={wanted} is no program here" if wanted else "there is no C++ compiler (g++ or clang++)"
    )


def compiler_version(program: Sequence[str]) -> str:
    """First line of what the compiler says of itself."""
    return _run([*program, "--version"]).split("\n", 1)[0].strip()


def extra_flags() -> tuple[str, ...]:
    """Flags that the environment adds."""
    return tuple(shlex.split(os.environ.get(FLAGS_VARIABLE, "")))


def source_digest() -> str:
    """A digest of the sources and of how they are compiled; a library holds the one it was made from."""
    digest = hashlib.sha256()
    for part in (platform.machine(), *FLAGS, repr(LEVELS)):
        digest.update(part.encode() + b"\0")
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def build_key(program: Sequence[str]) -> str:
    """A name for the library that changes with sources, compiler and flags."""
    parts = (source_digest(), compiler_version(program), *program[1:], *extra_flags())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build(folder: Path, program: Sequence[str], *, objects: Path | None = None) -> None:
    """Compile and link `kernels.so` with its record in `folder`, which appears whole or not at all.

    Args:
        folder: replaced when it is there and broken.
        objects: a folder that keeps compiled files, so that a change of one source compiles only that.

    Raises:
        BuildError: the compiler failed; holds what it said.
        OSError: the folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temporary:
        work = Path(temporary) / "library"
        work.mkdir()
        levels = [level for level, (_, flags) in LEVELS.items() if _accepts(program, flags)]
        if not levels:
            _run([*program, "-std=c++17", "-x", "c++", "-fsyntax-only", "/dev/null"])
        compiled = _compile(program, levels, objects or Path(temporary))
        library = work / LIBRARY
        _run([*program, "-shared", "-pthread", *extra_flags(), *map(str, compiled), "-o", str(library)])
        record = {
            "sources": source_digest(),
            "compiler": compiler_version(program),
            "flags": list(extra_flags()),
            "levels": levels,
            "sha256": file_digest(library),
        }
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        if folder.exists():  # of another process that was faster, or broken
            os.replace(folder, Path(temporary) / "replaced")
        os.replace(work, folder)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _accepts(program: Sequence[str], flags: Sequence[str]) -> bool:
    command = [*program, *FLAGS, *flags, "-x", "c++", "-fsyntax-only", "/dev/null"]
    return subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False).returncode == 0


def _compile(program: Sequence[str], levels: Sequence[str], folder: Path) -> list[Path]:
    """Object files of every source and level, on all usable cores; those that are in `folder` are kept."""
    headers = hashlib.sha256(compiler_version(program).encode())
    for path in sorted(SOURCES.glob("*.h")):
        headers.update(path.read_bytes())
    folder.mkdir(parents=True, exist_ok=True)

    def compile_one(work: tuple[Path, tuple[str, ...]]) -> Path:
        source, flags = work
        command = [*program, *FLAGS, *flags, *extra_flags(), "-c", str(source)]
        digest = headers.copy()
        digest.update("\0".join(command).encode() + source.read_bytes())
        target = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
        if not target.exists():
            unfinished = target.with_suffix(f".{os.getpid()}")
            _run([*command, "-o", str(unfinished)])
            os.replace(unfinished, target)
        return target

    works: list[tuple[Path, tuple[str, ...]]] = []
    for source in sorted(SOURCES.glob("*.cpp")):
        if source.name in SHARED:
            works.append((source, ()))
            continue
        for level in levels:
            number, flags = LEVELS[level]
            works.append((source, (*flags, f"-DEK_LEVEL={number}", f"-DEK_NS={level}")))
    with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as pool:
        return list(pool.map(compile_one, works))


def _run(command: Sequence[str]) -> str:
    """Run a command of the compiler; returns what it says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"the C++ compiler {command[0]} cannot be run: {error}") from error
    if done.returncode:
        said = "\n".join(line for line in done.stderr.splitlines() if "error" in line.lower()) or done.stderr
        raise BuildError(f"the C++ compiler {command[0]} failed: {said.strip()[-1000:] or done.returncode}")
    return done.stdout
