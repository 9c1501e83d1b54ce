"""Embedding of the native kernels against numpy, at every level of instructions that runs here."""

import numpy as np
import paddle
import pytest

from erniekit.errors import DataError
from erniekit.ops import gradients
from erniekit.ops.embedding import embedding_reference
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native import embedding as native

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)


def normal(*shape, seed=0, dtype="float32"):
    array = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return paddle.to_tensor(array).astype(dtype)


def parameter(v, d, dtype="float32"):
    made = paddle.create_parameter([v, d], dtype, default_initializer=paddle.nn.initializer.Constant(0.0))
    made.set_value(normal(v, d, seed=9, dtype=dtype))
    return made


def exact(x):
    return x.astype("float32").numpy().astype(np.float64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "v", "d"), [((1,), 1, 1), ((2, 5), 3, 7), ((300,), 40, 130), ((0, 4), 5, 6)]
)
def test_rows_and_gradients(library, shape, v, d, dtype):
    weight, ids = parameter(v, d, dtype), np.random.default_rng(0).integers(0, v, shape)
    grad = normal(*shape, d, seed=1, dtype=dtype)
    expected = np.zeros((v, d))
    np.add.at(expected, ids.reshape(-1), exact(grad).reshape(-1, d))
    for rounds in (1, 2):
        y = native.embedding_native(paddle.to_tensor(ids, dtype="int64"), weight)
        plain = embedding_reference(paddle.to_tensor(ids, dtype="int64"), weight)
        assert y.dtype == plain.dtype == weight.dtype
        np.testing.assert_array_equal(exact(y), exact(weight)[ids])
        np.testing.assert_array_equal(exact(y), exact(plain))
        y.backward(grad)
        # fp32 sums, also of ids that occur often, whatever the type of storage.
        np.testing.assert_allclose(exact(gradients.of(weight)), rounds * expected, rtol=1e-5, atol=1e-5)
        assert weight.grad is None and weight.main_grad.dtype == paddle.float32


def test_adds_to_the_gradient_of_a_tied_head(library):
    weight = parameter(5, 3)
    weight.main_grad = paddle.ones([5, 3])
    native.embedding_native(paddle.to_tensor([4, 4]), weight).sum().backward()
    np.testing.assert_array_equal(exact(gradients.of(weight)).sum(1), [3, 3, 3, 3, 9])


def test_threads_change_no_bit(library):
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        weight = parameter(7, 200)
        ids = paddle.to_tensor(np.arange(500) % 7)
        native.embedding_native(ids, weight).backward(normal(500, 200, seed=1))
        found.append(gradients.of(weight).numpy())
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


def test_ids_may_change_after_the_forward_pass(library):
    weight, ids = parameter(4, 2), paddle.to_tensor([1, 2])
    y = native.embedding_native(ids, weight)
    ids.fill_(0)
    y.sum().backward()
    np.testing.assert_array_equal(exact(gradients.of(weight))[:, 0], [0, 1, 1, 0])


@pytest.mark.parametrize("wrong", [-1, 4])
def test_ids_outside_the_table_are_told(library, wrong):
    with pytest.raises(DataError, match=f"token id {wrong} is outside the model's vocabulary of 4"):
        native.embedding_native(paddle.to_tensor([1, wrong]), parameter(4, 2))


def test_frozen_and_computed_tables(library):
    ids, weight = paddle.to_tensor([1, 1]), parameter(3, 2)
    frozen = normal(3, 2)
    assert native.embedding_native(ids, frozen).stop_gradient
    native.embedding_native(ids, weight * 2.0).sum().backward()
    np.testing.assert_array_equal(exact(weight.grad)[:, 0], [0, 4, 0])
    with paddle.no_grad():
        assert native.embedding_native(ids, weight).stop_gradient


def test_inputs_that_do_not_lie_row_by_row(library):
    table, ids = normal(3, 5).T, paddle.to_tensor([[0, 1], [2, 3], [4, 0]]).T
    np.testing.assert_array_equal(exact(native.embedding_native(ids, table)), exact(table)[ids.numpy()])


def test_other_types_take_the_reference(library):
    assert native.embedding_native(paddle.to_tensor([1], dtype="int32"), normal(3, 2)).shape == [1, 2]
