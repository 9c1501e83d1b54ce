"""Native updates against Paddle's, at every level of instructions that runs here."""

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from erniekit.ops.kernels.library import Library, find_library, load
from erniekit.optim import native
from erniekit.optim.native import NativeUpdate
from erniekit.optim.plain import PlainUpdate
from erniekit.optim.update import Entry, Numbers

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
BEST = load()
LEVELS = BEST.record["levels"][: BEST.record["levels"].index(BEST.level) + 1]
# One element, odd ones, more than one part of 16,384, none at all.
SHAPES = [[1], [3, 7], [129], [40000], [0], [16, 32]]


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Every level of instructions that runs here, with two threads."""
    chosen = load(request.param)
    monkeypatch.setattr(native.library, "load", lambda: chosen)
    before = chosen.threads
    chosen.set_threads(2)
    yield chosen
    chosen.set_threads(before)


def normal(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(dtype):
    return {
        str(index): paddle.to_tensor(normal(shape, index)).astype(dtype) for index, shape in enumerate(SHAPES)
    }


def run(kind, dtype, moment_type, *, steps=3):
    """Some updates; returns numbers of parameters, masters and moments by name."""
    held = parameters(dtype)
    update = kind(held)
    moments = [{n: paddle.zeros(p.shape, dtype=moment_type) for n, p in held.items()} for _ in range(2)]
    sums = []
    for step in range(1, steps + 1):
        entries, offset = [], 0
        for name, tensor in held.items():
            gradient = paddle.to_tensor(normal(tensor.shape, 100 * step + int(name)))
            entries.append(
                Entry(
                    name=name,
                    parameter=tensor,
                    gradient=gradient,
                    exp_avg=moments[0][name],
                    exp_avg_sq=moments[1][name],
                    rate=0.01 * (1 + int(name)),
                    decay=0.1 if int(name) % 2 else 0.0,
                    offset=offset,
                )
            )
            offset += tensor.size
        sums.append(update.square_sum(entry.gradient for entry in entries))
        update.update(entries, Numbers(step, clip=0.7, beta1=0.9, beta2=0.99, epsilon=1e-8))
    found = {"sums": np.array(sums)}
    for name, tensor in held.items():
        found[f"weight.{name}"] = tensor.astype("float32").numpy()
        found[f"first.{name}"] = moments[0][name].astype("float32").numpy()
        found[f"second.{name}"] = moments[1][name].astype("float32").numpy()
    found |= {f"master.{name}": update.master(name) for name in update.master_names()}
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("moment_type", ["float32", "bfloat16"])
def test_equals_paddles_operators(library, dtype, moment_type):
    ours, plain = run(NativeUpdate, dtype, moment_type), run(PlainUpdate, dtype, moment_type)
    assert ours.keys() == plain.keys()
    for name, expected in plain.items():
        found, kind = ours[name], name.partition(".")[0]
        assert found.shape == expected.shape
        if kind == "weight" and dtype == "bfloat16":
            # Rounded from masters that differ in their last bits.
            np.testing.assert_allclose(found, expected, rtol=2**-7)
            assert found.size < 100 or (found != expected).mean() < 0.01
        elif moment_type == "bfloat16" and kind != "sums":
            # The same random bits; a last bit moves a rounding only where it lies beside the border.
            np.testing.assert_allclose(found, expected, rtol=2**-6, atol=1e-3)
            assert (
                found.size < 100 or (np.abs(found - expected) > 1e-5 * np.abs(expected) + 1e-6).mean() < 0.01
            )
        else:
            np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("moment_type", ["float32", "bfloat16"])
def test_threads_change_no_bit(library, dtype, moment_type):
    found = []
    for threads in (1, 2, 3):
        library.set_threads(threads)
        found.append(run(NativeUpdate, dtype, moment_type))
    for name, expected in found[0].items():
        np.testing.assert_array_equal(found[1][name], expected)
        np.testing.assert_array_equal(found[2][name], expected)


def special():
    """Numbers around every border of bf16: ties, carries into the exponent, the smallest and the largest."""
    bits = np.arange(0, 1 << 32, 65521, dtype=np.uint64).astype(np.uint32)
    borders = (np.arange(0, 1 << 16, 37, dtype=np.uint32)[:, None] << 16) | np.array(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
    )
    values = np.concatenate([bits, borders.reshape(-1)]).view(np.float32)
    return values[np.isfinite(values)]


def test_a_master_is_held_exactly(library):
    values = special()
    held = {"a": paddle.zeros([values.size], dtype="bfloat16")}
    update = NativeUpdate(held)
    update.set_master("a", values)
    np.testing.assert_array_equal(update.master("a").view(np.uint32), values.view(np.uint32))
    # The parameter is the nearest bf16 number; of two equally near ones the one farther from zero.
    rounded = ((values.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(held["a"].numpy(), rounded)


def test_a_new_master_is_the_parameter(library):
    held = {"a": paddle.to_tensor(normal([33], 0)).astype("bfloat16")}
    np.testing.assert_array_equal(NativeUpdate(held).master("a"), held["a"].astype("float32").numpy())


def test_a_nan_stays_one_in_the_parameter(library):
    values = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7FC00000], np.uint32).view(np.float32)
    held = {"a": paddle.zeros([4], dtype="bfloat16")}
    update = NativeUpdate(held)
    update.set_master("a", values)
    assert np.isnan(held["a"].astype("float32").numpy()).all() and np.isnan(update.master("a")).all()


def test_the_sum_of_squares(library):
    update = NativeUpdate({})
    assert update.square_sum([]) == 0.0
    gradients = [normal([70000], 1), normal([3], 2)]
    expected = sum(float((g.astype(np.float64) ** 2).sum()) for g in gradients)
    assert update.square_sum(paddle.to_tensor(g) for g in gradients) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(update.square_sum([paddle.to_tensor([1.0, float("nan")])]))
    assert np.isinf(update.square_sum([paddle.to_tensor([1.0, float("inf")])]))
    turned = paddle.to_tensor(normal([4, 3], 3)).T
    assert update.square_sum([turned]) == pytest.approx(float((turned**2).sum()), rel=1e-6)


def test_types_that_the_kernels_know():
    assert NativeUpdate.takes({"a": paddle.zeros([2]), "b": paddle.zeros([2], dtype="bfloat16")})
    assert not NativeUpdate.takes({"a": paddle.zeros([2], dtype="float64")})
    assert not NativeUpdate.takes({"a": paddle.zeros([2, 3]).T})
