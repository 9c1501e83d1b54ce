"""What is compiled, when again, and what is said where it cannot be."""

import json
import os
import stat
from pathlib import Path

import pytest

from erniekit.ops.kernels import build

HEADER = "#pragma once\nconst int NUMBER = 3;\n"
SOURCE = """#include "number.h"
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
extern "C" int JOIN(add__, EK_NS)(int x) { return x + NUMBER + EK_LEVEL; }
"""
CPU = 'extern "C" int ek_cpu_level() { return 0; }\n'


@pytest.fixture
def program() -> tuple[str, ...]:
    try:
        return build.compiler()
    except build.BuildError:
        pytest.skip("there is no C++ compiler")


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernels that compile in no time."""
    folder = tmp_path / "src"
    folder.mkdir()
    (folder / "number.h").write_text(HEADER)
    (folder / "add.cpp").write_text(SOURCE)
    (folder / "cpu.cpp").write_text(CPU)
    monkeypatch.setattr(build, "SOURCES", folder)
    return folder


def write_compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_library_and_its_record(program: tuple[str, ...], sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "built"
    build.build(folder, program)
    record = json.loads((folder / build.RECORD).read_text())
    assert record["levels"] == list(build.LEVELS)
    assert record["sha256"] == build.file_digest(folder / build.LIBRARY)
    assert record["sources"] == build.source_digest()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".building")] == []


def test_a_broken_library_is_replaced(program: tuple[str, ...], sources: Path, tmp_path: Path) -> None:
    folder = tmp_path / "built"
    build.build(folder, program)
    whole = (folder / build.LIBRARY).read_bytes()
    (folder / build.LIBRARY).write_bytes(whole[: len(whole) // 2])
    build.build(folder, program)
    assert (folder / build.LIBRARY).read_bytes() == whole


def test_only_what_changed_is_compiled(program: tuple[str, ...], sources: Path, tmp_path: Path) -> None:
    objects = tmp_path / "objects"
    build.build(tmp_path / "one", program, objects=objects)
    first = set(objects.iterdir())
    assert len(first) == 1 + len(build.LEVELS)
    (sources / "cpu.cpp").write_text(CPU + "// changed\n")
    build.build(tmp_path / "two", program, objects=objects)
    second = set(objects.iterdir())
    assert len(second - first) == 1
    (sources / "number.h").write_text(HEADER + "// changed\n")
    build.build(tmp_path / "three", program, objects=objects)
    assert len(set(objects.iterdir()) - second) == 1 + len(build.LEVELS)


def test_the_key_follows_sources_compiler_and_flags(
    program: tuple[str, ...], sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [build.build_key(program)]
    assert build.build_key(program) == keys[0]
    (sources / "add.cpp").write_text(SOURCE + "// changed\n")
    keys.append(build.build_key(program))
    keys.append(build.build_key((*program, "-O0")))
    monkeypatch.setenv(build.FLAGS_VARIABLE, "-g -O1")
    assert build.extra_flags() == ("-g", "-O1")
    keys.append(build.build_key(program))
    monkeypatch.setattr(build, "compiler_version", lambda program: "another")
    keys.append(build.build_key(program))
    assert len(set(keys)) == 5


def test_a_level_that_the_compiler_does_not_know_is_left_out(
    program: tuple[str, ...], sources: Path, tmp_path: Path
) -> None:
    if len(build.LEVELS) == 1:
        pytest.skip("this architecture has one level")
    script = f'case "$*" in *avx512bf16*) echo "unknown" >&2; exit 1;; esac; exec {program[0]} "$@"'
    old = write_compiler(tmp_path / "old-compiler", script)
    build.build(tmp_path / "built", (old,))
    record = json.loads((tmp_path / "built" / build.RECORD).read_text())
    assert record["levels"] == [level for level in build.LEVELS if level != "avx512bf16"]


def test_wrong_code_is_told_and_leaves_nothing(
    program: tuple[str, ...], sources: Path, tmp_path: Path
) -> None:
    (sources / "add.cpp").write_text("int f() { return nothing; }\n")
    with pytest.raises(build.BuildError, match="nothing"):
        build.build(tmp_path / "built", program)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_a_broken_compiler_is_told(sources: Path, tmp_path: Path) -> None:
    broken = write_compiler(tmp_path / "compiler", "echo 'fatal error: no memory' >&2; exit 4")
    with pytest.raises(build.BuildError, match="fatal error: no memory"):
        build.build(tmp_path / "built", (broken,))


def test_cxx_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = write_compiler(tmp_path / "my-cxx", "echo mine 1.2")
    monkeypatch.setenv("CXX", f"{mine} --option")
    assert build.compiler() == (mine, "--option")
    assert build.compiler_version(build.compiler()) == "mine 1.2"
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="CXX=no-such-compiler is no program"):
        build.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match="no C.. compiler"):
        build.compiler()


def test_the_real_sources_are_there() -> None:
    names = {path.name for path in build.SOURCES.iterdir()}
    assert set(build.SHARED) <= names
    assert all(os.path.splitext(name)[1] in (".cpp", ".h") for name in names)
