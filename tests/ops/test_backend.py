"""Every faster operator that runs here against its reference: values, gradients, what is frozen."""

import math
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erniekit.errors import ConfigError, UnsupportedError
from erniekit.ops import attention_cpu, backend
from erniekit.ops.attention import attention_reference, visibility
from erniekit.ops.kernels.library import Found
from erniekit.ops.norm import rms_norm_cpu, rms_norm_reference
from erniekit.ops.rope import rotate_cpu, rotate_reference, rotations
from erniekit.ops.swiglu import swiglu_fused, swiglu_reference

COMPARED = {"attention", "rms_norm", "rotate", "swiglu"}


def test_every_operator_with_a_cpu_version_is_compared_here():
    assert {name for name, known in backend.IMPLEMENTATIONS.items() if "cpu" in known} == COMPARED
    for known in backend.IMPLEMENTATIONS.values():
        for target in known.values():
            assert callable(backend._load(target)), target


@pytest.fixture
def fresh(monkeypatch):
    """No kernels chosen yet, and none by the environment."""
    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_backend", None)
    monkeypatch.setattr(backend, "_warned", set())
    return monkeypatch


def found(level):
    return lambda: Found(SimpleNamespace(level=level, threads=2))


def missing():
    return Found(None, "there is no C++ compiler")


def test_kernels_are_chosen(fresh):
    fresh.setattr(backend, "find_library", found("avx2"))
    assert backend.current_backend() == "native" and backend.on_cpu()
    assert backend.kernels_in_words() == "native kernels (avx2, 2 threads)"
    assert backend.use_kernels("paddle") == backend.current_backend() == "cpu" and backend.on_cpu()
    assert backend.kernels_in_words() == "Paddle's operators"
    assert backend.use_kernels("native") == backend.use_kernels("auto") == "native"
    fresh.setenv(backend.VARIABLE, "paddle")
    assert backend.use_kernels("native") == "cpu"
    fresh.setenv(backend.VARIABLE, "natve")
    with pytest.raises(ConfigError, match="ERNIEKIT_KERNELS=natve.*auto, native, paddle"):
        backend.use_kernels("auto")


def test_bf16_is_multiplied_where_there_are_instructions(fresh):
    for level, expected in (("avx512bf16", True), ("avx512", False)):
        fresh.setattr(backend, "find_library", found(level))
        backend.use_kernels("auto")
        assert backend.multiplies_bf16() is expected
        backend.use_kernels("paddle")
        assert backend.multiplies_bf16() is False
    fresh.setattr(backend, "_backend", "gpu")
    assert backend.multiplies_bf16() is True


def test_portable_kernels_run_only_when_asked_for(fresh):
    fresh.setattr(backend, "find_library", found("portable"))
    assert backend.use_kernels("auto") == "cpu"
    assert backend.use_kernels("native") == "native"


def test_kernels_that_cannot_run_are_an_error_or_one_warning(fresh):
    told = []
    fresh.setattr(backend, "find_library", missing)
    fresh.setattr(backend.logger, "warning", told.append)
    with pytest.raises(UnsupportedError, match=r"kernels: native.*no C\+\+ compiler\n.*kernels: auto"):
        backend.use_kernels("native")
    assert backend.use_kernels("auto") == backend.use_kernels("auto") == "cpu"
    assert len(told) == 1 and "there is no C++ compiler" in told[0]


def test_a_gpu_has_no_native_kernels(fresh):
    fresh.setattr(backend.paddle.device, "get_device", lambda: "gpu:0")
    assert backend.use_kernels("auto") == backend.use_kernels("paddle") == "gpu"
    assert not backend.on_cpu()
    with pytest.raises(ConfigError, match="this run is on gpu"):
        backend.use_kernels("native")


def test_a_missing_operator_is_the_next_one(fresh):
    rows = {"reference": "math:sin", "cpu": "math:cos"}
    fresh.setitem(backend.IMPLEMENTATIONS, "one", rows)
    fresh.setitem(backend.IMPLEMENTATIONS, "other", {"reference": "math:sin"})
    fresh.setattr(backend, "_backend", "native")
    assert backend.choose("one") is math.cos and backend.choose("other") is math.sin
    fresh.setitem(backend.IMPLEMENTATIONS, "one", {**rows, "native": "math:tan"})
    assert backend.choose("one") is math.tan
    fresh.setattr(backend, "_backend", "gpu")
    assert backend.choose("one") is math.sin


def compare(fast, plain, inputs, *, frozen=(), dtype="float32", tolerance=1e-5):
    """Values and gradients of both, each relative to the largest number; `frozen` inputs take none."""
    results = []
    for function in (plain, fast):
        tensors = [paddle.to_tensor(np.asarray(x, "float32")).astype(dtype) for x in inputs]
        for index, tensor in enumerate(tensors):
            tensor.stop_gradient = index in frozen
        out = function(*tensors)
        assert str(out.dtype) == f"paddle.{dtype}"
        paddle.seed(0)
        if len(frozen) < len(inputs):
            (out.astype("float32") * paddle.randn(out.shape)).sum().backward()
        for index in frozen:
            assert tensors[index].grad is None
        grads = [
            np.zeros(t.shape) if t.grad is None else t.grad.astype("float32").numpy()
            for index, t in enumerate(tensors)
            if index not in frozen
        ]
        results.append([out.astype("float32").numpy(), *grads])
    # Where the exact result is 0 (a token that sees itself only), terms of order 1 cancel to their rounding.
    least = 0.02
    for expected, found in zip(*results, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), least)
        )


def normal(*shape, seed=0, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("frozen", [(), (0,), (1,), (0, 1)])
@pytest.mark.parametrize("shape", [(1, 4), (2, 3, 8), (5, 1, 17)])
def test_rms_norm(shape, frozen, dtype, tolerance):
    inputs = [normal(*shape), 1 + normal(shape[-1], seed=1, scale=0.3)]
    compare(
        lambda x, w: rms_norm_cpu(x, w, 1e-5),
        lambda x, w: rms_norm_reference(x, w, 1e-5),
        inputs,
        frozen=frozen,
        dtype=dtype,
        tolerance=tolerance,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_rotate(dtype, tolerance):
    turns = rotations(paddle.to_tensor([[0, 1, 700], [5, 0, 1]]), 8, 1e4, num_heads=3)
    assert turns.shape == [2, 3, 3, 4]
    compare(
        lambda x: rotate_cpu(x, turns),
        lambda x: rotate_reference(x, turns),
        [normal(2, 3, 3, 8)],
        dtype=dtype,
        tolerance=tolerance,
    )


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_swiglu(scale, dtype, tolerance):
    inputs = [normal(3, 5, 14, scale=scale)]
    compare(swiglu_fused, swiglu_reference, inputs, dtype=dtype, tolerance=tolerance)


def starts_of(rows, width):
    starts = np.tile(np.arange(width, dtype=np.int32), (len(rows), 1))
    for row, lengths in zip(starts, rows, strict=True):
        row[: sum(lengths)] = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return paddle.to_tensor(starts)


def compare_attention(rows, heads, *, dim=4, seed=0, **more):
    width = max(map(sum, rows))
    visible = visibility(starts_of(rows, width), num_past=0, backend="cpu")
    inputs = [
        normal(len(rows), width, n, dim, seed=seed + i) for i, n in enumerate((heads[0], *[heads[1]] * 2))
    ]
    compare(
        lambda *qkv: attention_cpu.attention_cpu(*qkv, visible),
        lambda *qkv: attention_reference(*qkv, visible),
        inputs,
        **more,
    )


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 3), (6, 1)]),
    tile=st.integers(1, 6),
    keep=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_attention_over_tiles(rows, heads, tile, keep, seed):
    before = attention_cpu.TILE, attention_cpu.KEEP_WEIGHTS_UP_TO
    attention_cpu.TILE, attention_cpu.KEEP_WEIGHTS_UP_TO = tile, 100 if keep else 0
    try:
        compare_attention(rows, heads, seed=seed)
    finally:
        attention_cpu.TILE, attention_cpu.KEEP_WEIGHTS_UP_TO = before


def test_attention_in_tiles_of_the_real_size():
    compare_attention([[300, 7], [131, 176]], (4, 2), dim=8)


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_attention_with_frozen_inputs(frozen):
    compare_attention([[3, 2], [5]], (2, 1), frozen=frozen)


def test_attention_in_bf16():
    compare_attention([[3, 2], [5]], (2, 1), dtype="bfloat16", tolerance=2e-2)


def test_attention_without_gradients_keeps_nothing():
    visible = visibility(starts_of([[4]], 4), num_past=0, backend="cpu")
    q = paddle.to_tensor(normal(1, 4, 2, 4).astype("float32"))
    q.stop_gradient = False
    with paddle.no_grad():
        assert attention_cpu.attention_cpu(q, q, q, visible).stop_gradient


def test_attention_dropout_keeps_the_mean_and_hides_some():
    visible = visibility(starts_of([[6]], 6), num_past=0, backend="cpu")
    q, v = paddle.zeros([1, 6, 1, 4]), paddle.ones([1, 6, 1, 4])
    paddle.seed(0)
    runs = np.stack([attention_cpu.attention_cpu(q, q, v, visible, dropout=0.5).numpy() for _ in range(200)])
    np.testing.assert_allclose(runs.mean((0, 1, 3, 4)), np.ones(6), atol=0.2)
    assert runs.std() > 0.2
