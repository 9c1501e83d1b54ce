"""What a recomputed function keeps, and that it runs twice and differentiates once."""

import gc
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients, remake
from erniekit.parallel import segment
from erniekit.parallel.segment import recomputed, without_discarded


@dataclass(frozen=True)
class Pair:
    number: int
    tensor: paddle.Tensor


def leaf(*shape: int, seed: int = 0) -> paddle.Tensor:
    tensor = paddle.to_tensor(np.random.default_rng(seed).normal(size=shape).astype(np.float32))
    tensor.stop_gradient = False
    return tensor


def test_it_runs_once_forward_and_once_backward() -> None:
    calls = []

    def cube(x: paddle.Tensor) -> paddle.Tensor:
        calls.append(paddle.is_grad_enabled())
        return x * x * x

    x = leaf(4)
    recomputed(cube)(x).sum().backward()
    assert calls == [False, True]
    assert np.allclose(x.grad.numpy(), 3 * x.numpy() ** 2)


def test_without_gradients_it_is_the_function() -> None:
    calls = []

    def double(x: paddle.Tensor) -> paddle.Tensor:
        calls.append(1)
        return x * 2

    with paddle.no_grad():
        assert recomputed(double)(leaf(2)).stop_gradient
    assert recomputed(double)(leaf(2).detach()).stop_gradient
    assert len(calls) == 2


def test_structures_lists_and_plain_values() -> None:
    def mixed(pair: Pair, scale: float, received: list[Any], *, flag: bool) -> tuple[Any, ...]:
        assert flag
        out = pair.tensor * scale
        received.append(Pair(7, out * 3))
        return Pair(pair.number + 1, out), paddle.argsort(out), "word"

    results = []
    for function in (mixed, recomputed(mixed)):
        x = leaf(5)
        received: list[Any] = ["before"]
        pair, order, word = function(Pair(1, x * 1.0), 2.0, received, flag=True)
        assert pair.number == 2 and word == "word" and order.dtype == paddle.int64
        assert received[0] == "before" and received[1].number == 7 and len(received) == 2
        (pair.tensor.square().sum() + received[1].tensor.sum()).backward()
        results.append((x.grad.numpy().tobytes(), order.numpy().tolist()))
    assert results[0] == results[1]


def test_results_without_use_cost_nothing() -> None:
    x = leaf(3)
    first, second = recomputed(lambda x: (x * 2, x.exp()))(x)
    assert not second.stop_gradient
    first.sum().backward()
    assert x.grad.numpy().tolist() == [2, 2, 2]


def test_an_input_that_is_returned_stays_itself() -> None:
    x = leaf(3)
    y = x * 1.0
    same, other = recomputed(lambda y: (y, y * 2))(y)
    assert same is y
    (same.sum() + other.sum()).backward()
    assert x.grad.numpy().tolist() == [3, 3, 3]


def test_dropout_repeats_and_moves_the_generator_once() -> None:
    def drop(x: paddle.Tensor) -> paddle.Tensor:
        return paddle.nn.functional.dropout(x, 0.5) * x

    found = []
    for function in (drop, recomputed(drop)):
        x = leaf(64)
        paddle.seed(3)
        out = function(function(x))
        after = paddle.randn([3]).numpy().tobytes()
        out.sum().backward()
        found.append((out.numpy().tobytes(), x.grad.numpy().tobytes(), after))
        found[-1] += (paddle.randn([3]).numpy().tobytes(),)
    assert found[0] == found[1]


def test_a_parameter_among_the_arguments_sums_its_uses_in_the_same_order() -> None:
    found = []
    for wrap in (lambda f: f, recomputed):
        weight = paddle.create_parameter([6, 6], "float32")
        weight.set_value(leaf(6, 6, seed=1))
        for step in range(3):
            x = leaf(9, 6, seed=step)
            y = wrap(lambda x, w: paddle.matmul(x, w).exp())(paddle.matmul(x, weight), weight)
            y.mean().backward()
        found.append(weight.grad.numpy().tobytes())
    assert found[0] == found[1]


def test_main_gradients_of_parameters_get_one_contribution() -> None:
    from erniekit.nn.linear import Linear

    found = []
    for wrap in (lambda f: f, recomputed):
        layer = Linear(8, 8, bias=True, dtype="float32")
        layer.weight.set_value(leaf(8, 8, seed=2))
        for step in range(2):
            wrap(layer.forward)(leaf(5, 8, seed=step)).square().sum().backward()
        found.append([gradients.of(parameter).numpy().tobytes() for parameter in (layer.weight, layer.bias)])
    assert found[0] == found[1]


@pytest.mark.parametrize("reader", ["paddle", "remake"])
def test_a_discarded_result_is_not_held(reader: str) -> None:
    """The graph holds neither what the function made inside nor what it returned."""
    calls = []

    def make(x: paddle.Tensor) -> paddle.Tensor:
        calls.append(1)
        return x * 3

    class Square(paddle.autograd.PyLayer):
        @staticmethod
        def forward(ctx: Any, y: paddle.Tensor, kept: remake.Recipe) -> paddle.Tensor:
            ctx.kept = kept
            return y * y

        @staticmethod
        def backward(ctx: Any, grad: paddle.Tensor) -> paddle.Tensor:
            return grad * remake.restore(ctx.kept) * 2

    made = recomputed(make, discard=[0])
    living = []

    def chain(x: paddle.Tensor) -> paddle.Tensor:
        y = made(x)
        living.append(weakref.ref(y))
        return paddle.matmul(y, y) if reader == "paddle" else Square.apply(y, remake.keep(y))

    x = leaf(4, 4)
    out = without_discarded(chain)(x)
    gc.collect()
    assert living[0]() is None and segment._discarded == {} and len(calls) == 1
    out.sum().backward()
    assert len(calls) == 2
    recomputing = x.grad.numpy()
    x.clear_gradient()
    plain = x * 3
    (paddle.matmul(plain, plain) if reader == "paddle" else plain * plain).sum().backward()
    assert np.allclose(recomputing, x.grad.numpy(), rtol=1e-6)


def test_discarded_results_follow_from_each_other_with_one_run_each() -> None:
    calls = {"a": 0, "b": 0}

    def step(name: str) -> Any:
        def function(x: paddle.Tensor) -> paddle.Tensor:
            calls[name] += 1
            return x.exp() * 0.1

        return recomputed(function, discard=[0])

    a, b = step("a"), step("b")
    x = leaf(3, 3)
    without_discarded(lambda x: (lambda y: y * y)(b(a(x))))(x).sum().backward()
    assert calls == {"a": 2, "b": 2}
    expected = leaf(3, 3)
    z = (expected.exp() * 0.1).exp() * 0.1
    (z * z).sum().backward()
    assert x.grad.numpy().tobytes() == expected.grad.numpy().tobytes()


def test_what_is_kept_is_free_after_the_backward_pass() -> None:
    x = leaf(3)
    y = x * 2.0
    out = recomputed(lambda y: y.exp())(y)
    loss = out.sum()
    watched = weakref.ref(y)
    loss.backward()
    del y, out
    gc.collect()
    assert watched() is None
    assert not loss.stop_gradient


def test_a_graph_without_a_backward_pass_is_freed() -> None:
    """Hooks must not make circles of operators that save their own results."""
    made = recomputed(lambda x: x * 3, discard=[0])
    chain = without_discarded(lambda x: paddle.nn.functional.softmax(made(x)).exp())
    x = leaf(512, 512)
    held = []
    for _ in range(3):
        out = chain(x)
        del out
        gc.collect()
        held.append(paddle.base.core.host_memory_stat_current_value("Allocated", 0))
    assert held[1] == held[0] and held[2] == held[0]


def test_a_parameter_may_be_elsewhere_until_its_gradient_is_due() -> None:
    weight = paddle.create_parameter([3, 3], "float32")
    away, x = weight.detach().clone(), leaf(2, 3)
    out = without_discarded(lambda x: paddle.nn.functional.gelu(paddle.matmul(x, weight)))(x)
    weight._clear_data()
    assert not weight._is_initialized()
    (away * 2)._share_buffer_to(weight)  # what comes back is what is read
    out.sum().backward()
    found, y = x.grad.numpy(), paddle.matmul(x.detach(), away)
    y.stop_gradient = False
    paddle.nn.functional.gelu(y).sum().backward()
    np.testing.assert_allclose(found, paddle.matmul(y.grad, (away * 2).T).numpy(), rtol=1e-5)
