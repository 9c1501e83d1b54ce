"""Gradients of weights that are put off: the same numbers, later."""

from collections.abc import Callable, Iterator

import numpy as np
import paddle
import pytest

from erniekit.ops import backend, gradients
from erniekit.ops.linear import linear
from erniekit.ops.moe import grouped_linear
from erniekit.ops.swiglu import swiglu


@pytest.fixture(params=["native", "paddle"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both kinds of kernels, where both run."""
    if request.param == "native" and backend.find_library().library is None:
        pytest.skip("native kernels do not run here")
    before = backend.current_backend()
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    backend.use_kernels(request.param)
    yield request.param
    backend.use_kernels("native" if before == "native" else "paddle")


def _parameter(*shape: int, dtype: str, seed: int) -> paddle.Tensor:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    made = paddle.to_tensor(values).astype(dtype).detach()
    made.stop_gradient = False
    return made


def _matrices(dtype: str) -> tuple[list[paddle.Tensor], Callable[[paddle.Tensor], paddle.Tensor]]:
    """Two linear layers and a grouped one, with a bias and an activation that is made again."""
    weights = [
        _parameter(8, 12, dtype=dtype, seed=1),
        _parameter(12, dtype=dtype, seed=2),
        _parameter(6, 8, dtype=dtype, seed=3),
        _parameter(3, 8, 4, dtype=dtype, seed=4),
    ]

    def compute(x: paddle.Tensor) -> paddle.Tensor:
        inner = linear(swiglu(linear(x, weights[0], weights[1])), weights[2])
        return grouped_linear(inner, weights[3], paddle.to_tensor([0, 2, 2, 5]))

    return weights, compute


def _input(dtype: str, seed: int) -> paddle.Tensor:
    x = paddle.to_tensor(np.random.default_rng(seed).normal(size=(5, 8)).astype(np.float32)).astype(dtype)
    x.stop_gradient = False
    return x


def _numbers(tensor: paddle.Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.astype("float32").numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_put_off_gradients_are_the_same(dtype: str) -> None:
    weights, compute = _matrices(dtype)
    inputs = [_input(dtype, seed) for seed in (5, 6)]
    found = []
    for later in (False, True):
        for each in inputs:
            each.clear_gradient()
        waiting = []
        for each in inputs:
            if later:
                with gradients.put_off() as calls:
                    compute(each).sum().backward()
                waiting.append(calls)
            else:
                compute(each).sum().backward()
        if later:
            assert [len(calls) for calls in waiting] == [3, 3]
            # Nothing is there of the matrices; the bias, small as it is, is not put off.
            assert all(gradients.of(weights[place]) is None for place in (0, 2, 3))
            assert gradients.of(weights[1]) is not None
            for calls in reversed(waiting):
                for call in calls:
                    call()
        found.append([_numbers(gradients.of(weight)) for weight in weights])
        found[-1] += [_numbers(each.grad) for each in inputs]
        for weight in weights:
            gradients.clear(weight)
    tolerance = 1e-6 if dtype == "float32" else 2e-2
    assert len(found[0]) == 6
    for one, two in zip(*found, strict=True):
        assert np.abs(one - two).max() <= tolerance * np.abs(one).max()


def test_a_weight_that_is_computed_gets_its_gradient_at_once() -> None:
    weight = _parameter(8, 4, dtype="float32", seed=1)
    with gradients.put_off() as calls:
        linear(_input("float32", 2), weight * 2.0).sum().backward()
    assert not calls and gradients.of(weight) is not None


def test_nothing_is_put_off_outside() -> None:
    assert not gradients.are_put_off()
    with pytest.raises(RuntimeError, match="inside"), gradients.put_off():
        assert gradients.are_put_off()
        raise RuntimeError("inside")
    assert not gradients.are_put_off()
