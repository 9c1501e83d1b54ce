"""Freed memory between living tensors goes back to the system; memory for tensors of one's own."""

import sys

import paddle
import pytest

from erniekit.ops.allocation import empty, release_free_memory
from erniekit.ops.backend import choose
from erniekit.ops.native import memory as native

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_memory_of_ones_own_is_written_and_read(dtype):
    shape = [3, 1 << 16]
    tensor = empty(shape, dtype)
    assert tensor.shape == shape and tensor.dtype == getattr(paddle, dtype) and tensor.is_contiguous()
    tensor[1:2] = paddle.full([1, shape[1]], 2.5, dtype=dtype)
    assert float(tensor[1].astype("float64").sum()) == 2.5 * shape[1]


def test_with_native_kernels_what_gradients_leave_is_used_again():
    if choose("empty").__module__ != native.__name__:
        pytest.skip("kernels are Paddle's")
    first = native.empty([1 << 20])
    place = first.data_ptr()
    del first
    assert empty([1 << 20]).data_ptr() == place
