"""Where the library comes from, and that a broken place gives a reason and never a crash."""

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from erniekit.errors import UnsupportedError
from erniekit.ops.kernels import build, library

CPU = """extern "C" int ek_cpu_level() { return 0; }
static int threads = 1;
extern "C" void ek_set_threads(int n) { threads = n; }
extern "C" int ek_get_threads() { return threads; }
extern "C" void* ek_memory_take(unsigned long) { return 0; }
extern "C" void ek_memory_give(void*) {}
extern "C" void ek_memory_release() {}
extern "C" int ek_onednn_open(const char*) { return 1; }
extern "C" void ek_onednn_use(int) {}
"""
ADD = """#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern "C" int JOIN(add__, EK_NS)(int x) { return x + EK_LEVEL; }
"""
VISIBLE = "-fvisibility=default"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Sources that compile in no time, and a cache of their own."""
    try:
        build.compiler()
    except build.BuildError:
        pytest.skip("there is no C++ compiler")
    sources = tmp_path / "src"
    sources.mkdir()
    (sources / "cpu.cpp").write_text(CPU)
    (sources / "add.cpp").write_text(ADD)
    monkeypatch.setattr(build, "SOURCES", sources)
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "packaged")
    monkeypatch.setenv("ERNIEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(build.FLAGS_VARIABLE, VISIBLE)
    monkeypatch.delenv(library.LEVEL_VARIABLE, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    library.load.cache_clear()
    library.find_library.cache_clear()
    yield tmp_path
    library.load.cache_clear()
    library.find_library.cache_clear()


def again() -> library.Found:
    """As a new process would find it."""
    library.load.cache_clear()
    library.find_library.cache_clear()
    return library.find_library()


def test_it_is_compiled_once_and_its_functions_are_called(place: Path) -> None:
    found = library.find_library()
    assert found.library is not None and found.reason == ""
    assert found.library.level == "portable"
    assert found.library.threads == 3
    assert found.library.declare("add", ctypes.c_int, result=ctypes.c_int)(4) == 4
    assert found.library.folder.parent == place / "cache/kernels"
    made = (found.library.folder / build.LIBRARY).stat().st_mtime_ns
    second = again().library
    assert second is not None and (second.folder / build.LIBRARY).stat().st_mtime_ns == made


def test_a_level_above_the_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="avx2 do not run here; those that do: portable"):
        library.load("avx2")
    monkeypatch.setenv(library.LEVEL_VARIABLE, "avx512")
    assert "avx512 do not run here" in library.find_library().reason


def test_a_damaged_library_is_compiled_again() -> None:
    first = library.find_library().library
    assert first is not None
    path = first.folder / build.LIBRARY
    content = path.read_bytes()
    for damaged in (content[:100], b"", content[:-1] + b"?"):
        # A file of its own: this process has the old one loaded.
        path.unlink()
        path.write_bytes(damaged)
        assert again().library is not None
        assert path.read_bytes() == content
    (first.folder / build.RECORD).write_text("{")
    assert again().library is not None


def test_a_folder_that_cannot_be_written_is_a_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "file").write_text("")
    monkeypatch.setenv("ERNIEKIT_CACHE", str(place / "file"))
    found = library.find_library()
    assert found.library is None
    assert "could not be built" in found.reason and str(place / "file") in found.reason


def test_a_full_disk_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build, "build", full)
    assert "No space left" in library.find_library().reason


def test_a_broken_compiler_is_a_reason(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = place / "cxx"
    broken.write_text("#!/bin/sh\n[ \"$1\" = --version ] && exit 0\necho 'error: broken' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert "error: broken" in library.find_library().reason


def test_without_a_compiler_what_was_built_before_is_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = library.find_library().library
    monkeypatch.setenv("CXX", "no-such-compiler")
    now = again().library
    assert before is not None and now is not None and now.folder == before.folder
    (build.SOURCES / "add.cpp").write_text(ADD + "// changed\n")
    assert "CXX=no-such-compiler is no program" in again().reason


def test_the_packaged_library_comes_first_unless_it_is_old(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(library.PACKAGED, build.compiler())
    monkeypatch.setattr(build, "extra_flags", tuple)
    found = library.find_library().library
    assert found is not None and found.folder == library.PACKAGED
    (build.SOURCES / "add.cpp").write_text(ADD + "// changed\n")
    monkeypatch.setattr(build, "extra_flags", lambda: (VISIBLE,))
    changed = again().library
    assert changed is not None and changed.folder.parent == library.cache_folder()


def test_two_processes_at_once_build_one_library(place: Path) -> None:
    program = (
        "from pathlib import Path; from erniekit.ops.kernels import build, library\n"
        f"build.SOURCES = Path({str(build.SOURCES)!r}); library.PACKAGED = Path('/nowhere')\n"
        "found = library.find_library(); assert found.library, found.reason\n"
    )

    def run(index: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ.copy(), check=False)

    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(run, range(2)))
    assert [answer.returncode for answer in answers] == [0, 0], answers
    folders = [path for path in library.cache_folder().iterdir() if (path / build.RECORD).is_file()]
    assert len(folders) == 1 and library.is_whole(folders[0])
