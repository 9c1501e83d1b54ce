"""The native sum of two tensors against the plain one."""

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from erniekit.ops import remake
from erniekit.ops.kernels import library
from erniekit.ops.kernels.library import Library, find_library, load
from erniekit.ops.linear import add_reference, widen_reference
from erniekit.ops.native.add import add_native, views_native, widen_native

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
BEST = load()
LEVELS = BEST.record["levels"][: BEST.record["levels"].index(BEST.level) + 1]


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    chosen = load(request.param)
    monkeypatch.setattr(library, "load", lambda: chosen)
    yield chosen


def draw(shape: tuple[int, ...], dtype: str, seed: int) -> paddle.Tensor:
    values = np.random.default_rng(seed).normal(size=shape).astype("float32")
    return paddle.to_tensor(values).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 5), (2, 3, 17), (300, 129)])
def test_sum(level: Library, shape: tuple[int, ...], dtype: str) -> None:
    x, y = draw(shape, dtype, 0), draw(shape, dtype, 1)
    found, expected = add_native(x, y), add_reference(x, y)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_array_equal(found.astype("float32").numpy(), expected.astype("float32").numpy())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_gradients(level: Library, frozen: tuple[int, ...], dtype: str) -> None:
    inputs = [draw((4, 33), dtype, seed) for seed in range(2)]
    for index, tensor in enumerate(inputs):
        tensor.stop_gradient = index in frozen
    seed = draw((4, 33), dtype, 2)
    paddle.autograd.backward([add_native(*inputs)], [seed])
    for index, tensor in enumerate(inputs):
        if index in frozen:
            assert tensor.grad is None
        else:
            np.testing.assert_array_equal(
                tensor.grad.astype("float32").numpy(), seed.astype("float32").numpy()
            )


def test_gradients_do_not_share_memory(level: Library) -> None:
    """x + y where x has another gradient: what is added to one must not reach the other."""
    x, y = draw((8, 8), "float32", 0), draw((8, 8), "float32", 1)
    x.stop_gradient = y.stop_gradient = False
    (add_native(x, y).sum() + (3.0 * x).sum() + add_native(x, x).sum()).backward()
    assert (x.grad.numpy() == 6.0).all() and (y.grad.numpy() == 1.0).all()


def test_strides_mixed_types_and_shapes(level: Library) -> None:
    x, y = draw((6, 10), "float32", 0), draw((10, 6), "float32", 1)
    np.testing.assert_array_equal(add_native(x.T, y).numpy(), x.numpy().T + y.numpy())
    narrow = draw((10,), "float32", 2)
    np.testing.assert_array_equal(add_native(x, narrow).numpy(), x.numpy() + narrow.numpy())
    assert add_native(x.astype("bfloat16"), x.astype("bfloat16")).dtype == paddle.bfloat16


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_views_are_summed(level: Library, dtype: str) -> None:
    x = draw((6, 11), dtype, 0)
    x.stop_gradient = False
    shapes = ([3, 2, 11], [6, 11], [66])
    seeds = [draw(tuple(shape), dtype, index) for index, shape in enumerate(shapes)]
    found = views_native(x, *shapes)
    assert [view.shape for view in found] == [list(shape) for shape in shapes]
    for view in found:
        np.testing.assert_array_equal(
            view.flatten().astype("float32").numpy(), x.flatten().astype("float32").numpy()
        )
    paddle.autograd.backward(list(found), seeds)
    one, two, three = (seed.reshape([6, 11]) for seed in seeds)
    expected = add_reference(add_reference(one, two), three).astype("float32").numpy()
    np.testing.assert_array_equal(x.grad.astype("float32").numpy(), expected)
    np.testing.assert_array_equal(one.astype("float32").numpy(), draw((6, 11), dtype, 0).astype("float32"))


def test_a_view_is_made_again_as_what_it_views(level: Library) -> None:
    source = draw((4, 6), "float32", 0)
    x = remake.mark(source * 2.0, lambda one: one * 2.0, source)
    x.stop_gradient = False
    (view,) = views_native(x, [24])
    again = remake.restore(remake.keep(view))
    assert again.shape == [24] and again.data_ptr() != view.data_ptr()
    np.testing.assert_array_equal(again.numpy(), view.numpy())


@pytest.mark.parametrize("shape", [(0, 3), (1,), (7, 5), (300, 129)])
def test_widen(level: Library, shape: tuple[int, ...]) -> None:
    x, seed = draw(shape, "bfloat16", 0), draw(shape, "float32", 1)
    x.stop_gradient = False
    wide = widen_native(x)
    assert wide.dtype == paddle.float32
    np.testing.assert_array_equal(wide.numpy(), widen_reference(x).numpy())
    paddle.autograd.backward([wide], [seed])
    assert x.grad.dtype == paddle.bfloat16
    np.testing.assert_array_equal(
        x.grad.astype("float32").numpy(), seed.astype("bfloat16").astype("float32").numpy()
    )
