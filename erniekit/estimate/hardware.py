"""What this machine has: memory that may be taken, cores, and how fast it multiplies matrices.

A container may be allowed less than the machine has: control groups and the CPU affinity decide.
"""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


def available_memory(root: Path = Path("/")) -> int:
    """Bytes this process may still take: what the kernel calls available, within the control groups."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for group in _control_groups(root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _number(group / limit_name), _number(group / used_name)
            if limit is not None and used is not None:
                free = min(free, max(0, limit - used + _file_cache(group)))
    return free


def usable_cores(root: Path = Path("/")) -> float:
    """Cores that this process may use; a quota may be a fraction."""
    cores: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups(root):
        words = _text(group / "cpu.max").split()
        if len(words) != 2:
            words = [_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")]
        if all(word.isdigit() for word in words):
            cores = min(cores, int(words[0]) / int(words[1]))
    return cores


def measure_flops(
    multiply: Callable[[], object],
    flops: float,
    *,
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of a function of `flops` FLOPs: the fastest of some calls after a first one that warms up."""
    multiply()
    durations = []
    for _ in range(repeats):
        started = clock()
        multiply()
        durations.append(clock() - started)
    return flops / max(min(durations), 1e-9)


def _control_groups(root: Path) -> Iterator[Path]:
    """Folders of the groups whose limits hold for this process: its own, and every one above."""
    mount = root / "sys/fs/cgroup"
    seen = set()
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        base = mount / controllers if controllers else mount
        inner = base / path.strip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(base) and folder.is_dir():
                seen.add(folder)
    # Inside a container the listing may name paths of the host; the mount itself is then ours.
    seen.update(folder for folder in (mount, mount / "memory", mount / "cpu") if folder.is_dir())
    yield from sorted(seen)


def _file_cache(group: Path) -> int:
    """Bytes of a group that are copies of files: the kernel takes them back when memory is asked for."""
    lines = [line.split() for line in _text(group / "memory.stat").splitlines()]
    sizes = {line[0]: int(line[1]) for line in lines if len(line) == 2}
    return sizes.get("total_inactive_file", sizes.get("inactive_file", 0))


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdigit() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
