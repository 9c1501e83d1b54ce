"""Freed memory between living tensors goes back to the system."""

import sys

import paddle
import pytest

from erniekit.ops.allocation import release_free_memory

if sys.platform != "linux":
    pytest.skip("memory is read from /proc", allow_module_level=True)


def resident_bytes():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_holes_between_tensors_are_given_back():
    kept, holes = [], []
    for _ in range(64):  # 64 KiB stay below every threshold of glibc for mappings of their own
        kept.append(paddle.ones([1 << 14]))
        holes.append([paddle.ones([1 << 14]) for _ in range(16)])
    before = resident_bytes()
    del holes
    release_free_memory()
    assert before - resident_bytes() > 30 << 20
    assert all(float(tensor.sum()) == 1 << 14 for tensor in kept)
