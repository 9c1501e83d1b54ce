"""What the machine is: processor, memory, disks, graphics cards; read from the system, without Paddle.

A container may be allowed less than the machine has, and that is what a run can use: limits of
control groups and of the CPU affinity count before the hardware's figures.
"""

import os
import platform
import shutil
import subprocess
from pathlib import Path

# The name in /proc/cpuinfo of what decides which kernels can run, and the name people know.
INSTRUCTION_SETS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_bf16": "avx512-bf16",
    "avx512_vnni": "avx512-vnni",
    "avx_vnni": "avx-vnni",
    "amx_tile": "amx",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "sve": "sve",
}
_GPU_SECONDS = 10


def processor(root: Path = Path("/")) -> tuple[str, list[str]]:
    """Model name of the processor, and those of its instruction sets that matter here."""
    model, flags = platform.processor() or platform.machine(), set()
    cpuinfo = root / "proc/cpuinfo"
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() in ("flags", "Features"):
                flags.update(value.split())
                break
    return model, [word for flag, word in INSTRUCTION_SETS.items() if flag in flags]


def cores(root: Path = Path("/")) -> tuple[int, float]:
    """Cores of the machine, and how many of them this process may use (a quota may be fractional)."""
    present = os.cpu_count() or 1
    usable: float = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else present
    for folder in _cgroups(root):
        words = _words(folder / "cpu.max")
        words = words or _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            usable = min(usable, int(words[0]) / int(words[1]))
    return present, usable


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory that this process may use in all, and that are free for it now."""
    total = available = 0
    meminfo = root / "proc/meminfo"
    if meminfo.is_file():
        rows = [line.split() for line in meminfo.read_text(encoding="ascii").splitlines()]
        sizes = {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) > 1}
        total, available = sizes.get("MemTotal", 0), sizes.get("MemAvailable", 0)
    for folder in _cgroups(root):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            limit, used = _words(folder / limit_name), _words(folder / used_name)
            if limit and limit[0] != "max" and int(limit[0]) < total:
                total = int(limit[0])
                available = min(available, total - int(used[0])) if used else min(available, total)
    return total, available


def free_disk(folder: Path) -> int:
    """Bytes free on the disk that `folder` is on, or will be on once it exists."""
    place = folder.expanduser().absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def graphics_cards() -> list[str]:
    """One line for each NVIDIA card: name, memory, driver; empty when the driver's tool is not there."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_GPU_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [f"nvidia-smi does not answer ({error})"]
    if answer.returncode:
        lines = (answer.stdout + answer.stderr).strip().splitlines()
        return [f"nvidia-smi fails: {lines[0] if lines else answer.returncode}"]
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def operating_system(root: Path = Path("/")) -> str:
    """Distribution, kernel and C library."""
    name = platform.system()
    release = root / "etc/os-release"
    if release.is_file():
        for line in release.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("PRETTY_NAME="):
                name = line.partition("=")[2].strip('"')
    libc = " ".join(platform.libc_ver()).strip()
    return f"{name}, kernel {platform.release()}, {platform.machine()}" + (f", {libc}" if libc else "")


def _cgroups(root: Path) -> list[Path]:
    """Folders whose limits apply to this process: its own group first, then every group above it."""
    mount = root / "sys/fs/cgroup"
    listing = root / "proc/self/cgroup"
    folders = []
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, path = line.split(":", 2)
            base = mount / controllers if controllers else mount
            inner = base / path.strip("/")
            folders += [inner, *[parent for parent in inner.parents if parent.is_relative_to(base)]]
    folders += [mount, mount / "memory", mount / "cpu"]
    return [folder for folder in dict.fromkeys(folders) if folder.is_dir()]


def _words(file: Path) -> tuple[str, ...]:
    return tuple(file.read_text(encoding="ascii").split()) if file.is_file() else ()
