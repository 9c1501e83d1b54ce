"""Reads beyond a tensor with a kernel of the level that is named: the sanitizer has to end this process."""

import ctypes
import sys

import paddle

from erniekit.ops.kernels.library import FP32, load

pointer = ctypes.c_void_p
sums = load(sys.argv[1]).declare(
    "ek_sum_rows", ctypes.c_int, ctypes.c_long, ctypes.c_long, pointer, pointer, ctypes.c_float
)
columns = 1024
given, out = paddle.zeros([columns]), paddle.zeros([columns])
sums(FP32, 1, columns, given.data_ptr(), out.data_ptr(), 0.0)
sys.stdout.write("what is inside was read\n")
sys.stdout.flush()
sums(FP32, 2, columns, given.data_ptr(), out.data_ptr(), 0.0)
sys.stdout.write("what is beyond was read, and nobody noticed\n")
