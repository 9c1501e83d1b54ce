"""Results of operators in memory of their own: freed, joined, used again, and never shared."""

import gc
import subprocess
import sys

import numpy as np
import paddle
import pytest

from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import memory

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
LIBRARY = find_library().library


def taken():
    gc.collect()
    memory.take_back()
    return LIBRARY.memory_state()[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", paddle.float32, paddle.bfloat16, "int16"])
@pytest.mark.parametrize("shape", [(300, 200), (1, 3, 5), (0, 7), (1 << 16,)])
def test_tensors_are_as_paddle_makes_them(shape, dtype):
    found, expected = memory.empty(shape, dtype), paddle.empty(shape, dtype=dtype)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert found.place == expected.place and found.is_contiguous() and found.stop_gradient
    found.fill_(3.0)
    assert (found.astype("float32").numpy() == 3.0).all()


def test_memory_lives_as_long_as_the_last_view():
    before = taken()
    tensor = memory.empty([512, 512], "bfloat16")
    assert taken() == before + (1 << 19)
    view, alias = tensor.reshape([-1]), tensor.detach()
    tensor.fill_(2.0)
    del tensor
    assert taken() == before + (1 << 19) and float(view.astype("float32").sum()) == 2.0 * (1 << 18)
    del view
    assert taken() == before + (1 << 19)
    del alias
    assert taken() == before


THREADS = """
import threading
from erniekit.ops.native import memory
def work():
    for _ in range(3000):
        memory.empty([1 << 15])
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_threads_that_let_go_of_tensors_do_not_wait_for_each_other():
    """Paddle lets go inside a lock: code of Python there would let a thread in that wants the same lock."""
    subprocess.run([sys.executable, "-c", THREADS], timeout=60, check=True)


def test_freed_neighbours_join_and_are_used_again():
    before = taken()
    address = memory.empty([1 << 18]).data_ptr()
    blocks = [memory.empty([1 << 18]) for _ in range(6)]
    assert blocks[0].data_ptr() == address  # the lowest place that fits
    kept = blocks[0].data_ptr() + (1 << 20)
    del blocks[1:4]
    gc.collect()
    large = memory.empty([3 << 18])
    assert large.data_ptr() == kept
    del blocks, large
    assert taken() == before


def test_what_lies_side_by_side_stays_apart():
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=int(n)).astype(np.float32) for n in rng.integers(1 << 14, 1 << 18, 60)]
    tensors = []
    for index, array in enumerate(arrays):
        tensor = memory.empty(array.shape)
        paddle.assign(paddle.to_tensor(array), output=tensor)
        tensors.append(tensor)
        if index % 3 == 2:
            tensors[index - 1] = None
    for array, tensor in zip(arrays, tensors, strict=True):
        if tensor is not None:
            np.testing.assert_array_equal(tensor.numpy(), array)


def test_without_space_paddle_is_asked(monkeypatch):
    monkeypatch.setattr(LIBRARY, "_take", lambda size: None)
    assert memory.empty([512, 512]).shape == [512, 512]
