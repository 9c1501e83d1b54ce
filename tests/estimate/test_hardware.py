"""Limits of containers, from folders that look like the system's; and a clock that does not run."""

import os

import pytest

from erniekit.estimate.hardware import available_memory, measure_flops, usable_cores

GIB = 2**30


def write(root, path, text):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


@pytest.fixture
def machine(tmp_path):
    write(tmp_path, "proc/meminfo", f"MemTotal: 64 kB\nMemAvailable:   {8 * GIB // 1024} kB\n")
    return tmp_path


def test_what_the_kernel_calls_available(machine):
    assert available_memory(machine) == 8 * GIB


def test_the_own_group_and_those_above_limit(machine):
    write(machine, "proc/self/cgroup", "0::/user/job\n")
    group = "sys/fs/cgroup/user"
    write(machine, f"{group}/job/memory.max", "max\n")
    write(machine, f"{group}/memory.max", f"{4 * GIB}\n")
    write(machine, f"{group}/memory.current", f"{3 * GIB}\n")
    assert available_memory(machine) == GIB
    # Copies of files that were written are no memory in use: the kernel takes them back.
    write(machine, f"{group}/memory.stat", f"anon {GIB}\ninactive_file {2 * GIB}\n")
    assert available_memory(machine) == 3 * GIB


def test_the_first_version_of_control_groups(machine):
    write(machine, "proc/self/cgroup", "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n")
    write(machine, "sys/fs/cgroup/memory/memory.limit_in_bytes", f"{2 * GIB}")
    write(machine, "sys/fs/cgroup/memory/memory.usage_in_bytes", f"{GIB}")
    write(machine, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000")
    write(machine, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    assert available_memory(machine) == GIB
    assert usable_cores(machine) == 0.5


def test_cores_by_affinity_and_quota(machine):
    assert usable_cores(machine) == len(os.sched_getaffinity(0))
    write(machine, "sys/fs/cgroup/cpu.max", "25000 100000\n")
    assert usable_cores(machine) == 0.25
    write(machine, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert usable_cores(machine) == len(os.sched_getaffinity(0))


def test_the_real_machine_has_some():
    assert 0 < available_memory() < 2**50
    assert usable_cores() > 0


def test_the_fastest_call_counts_and_the_first_does_not():
    calls = []
    now = iter([0, 4, 10, 12, 20, 23])
    flops = measure_flops(lambda: calls.append(1), 100.0, repeats=3, clock=lambda: next(now))
    assert flops == 100.0 / 2
    assert len(calls) == 4
