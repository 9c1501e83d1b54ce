"""Facts of a machine, read from made-up system files."""

from pathlib import Path

import pytest

from erniekit.cli import machine

GIB = 2**30


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    return tmp_path


def test_processor_names_what_matters(root: Path) -> None:
    text = "processor : 0\nmodel name : Fast 9000\nflags : fpu sse avx2 avx512f avx512_bf16 amx_tile\n"
    (root / "proc/cpuinfo").write_text(text)
    assert machine.processor(root) == ("Fast 9000", ["avx2", "avx512", "avx512-bf16", "amx"])


def test_memory_without_limits(root: Path) -> None:
    assert machine.memory(root) == (16 * GIB, 8 * GIB)


def test_limit_of_a_control_group_counts(root: Path) -> None:
    group = root / "sys/fs/cgroup/box/inner"
    group.mkdir(parents=True)
    (root / "proc/self").mkdir()
    (root / "proc/self/cgroup").write_text("0::/box/inner\n")
    (root / "sys/fs/cgroup/box/memory.max").write_text(f"{4 * GIB}\n")
    (root / "sys/fs/cgroup/box/memory.current").write_text(f"{GIB}\n")
    (group / "memory.max").write_text("max\n")
    assert machine.memory(root) == (4 * GIB, 3 * GIB)


def test_limit_of_version_one(root: Path) -> None:
    group = root / "sys/fs/cgroup/memory"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text(f"{2 * GIB}\n")
    (group / "memory.usage_in_bytes").write_text(f"{GIB // 2}\n")
    assert machine.memory(root) == (2 * GIB, 3 * GIB // 2)


def test_quota_of_cores(root: Path) -> None:
    group = root / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("50000 100000\n")
    present, usable = machine.cores(root)
    assert present >= 1
    assert usable == 0.5


def test_unlimited_quota(root: Path) -> None:
    (root / "sys/fs/cgroup/cpu").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us").write_text("-1\n")
    (root / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    assert machine.cores(root)[1] >= 1


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert machine.free_disk(tmp_path / "a" / "b") > 0


def test_operating_system_has_its_name(root: Path) -> None:
    (root / "etc").mkdir()
    (root / "etc/os-release").write_text('PRETTY_NAME="Some Linux 1"\n')
    assert machine.operating_system(root).startswith("Some Linux 1, kernel ")


def test_a_failing_driver_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'no driver' >&2\nexit 9\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.graphics_cards() == ["nvidia-smi fails: no driver"]
    tool.write_text("#!/bin/sh\necho 'Card A, 81559 MiB, 550.1'\n")
    assert machine.graphics_cards() == ["Card A, 81559 MiB, 550.1"]
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert machine.graphics_cards() == []
