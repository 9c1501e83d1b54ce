"""Native self-attention against turning and masked attention by plain operators, forward and backward."""

from collections.abc import Iterator

import numpy as np
import paddle
import pytest

from erniekit.ops.attention import Visibility, attention_reference, whole_mask
from erniekit.ops.kernels.library import Found, Library, find_library, load
from erniekit.ops.native import attention as native
from erniekit.ops.rope import rotate_reference, rotations

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
BEST = load()
LEVELS = BEST.record["levels"][: BEST.record["levels"].index(BEST.level) + 1]
# Relative to the largest element; for bf16 against fp32 arithmetic on the same bf16 inputs.
BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
# Rows, columns, query heads, key heads, head dim.
SHAPES = [
    *((2, 1, 3, 1, 6), (2, 63, 3, 3, 64), (1, 64, 9, 3, 64), (2, 65, 6, 2, 80), (2, 130, 9, 3, 64)),
    *((1, 130, 2, 1, 128), (2, 129, 4, 4, 2), (1, 200, 5, 1, 256), (1, 33, 16, 1, 18), (1, 1100, 3, 1, 16)),
]


@pytest.fixture(params=LEVELS)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """Every level of instructions that runs here, with two threads."""
    chosen = load(request.param)
    before = chosen.threads
    monkeypatch.setattr(native, "find_library", lambda: Found(chosen))
    chosen.set_threads(2)
    yield chosen
    chosen.set_threads(before)


def starts(kind: str, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """First visible column of every query."""
    own = np.tile(np.arange(columns), (rows, 1))
    out = np.zeros((rows, columns), np.int64)
    for row in range(rows):
        if kind == "packed":
            column = 0
            while column < columns:
                length = int(rng.choice([1, 1, 2, 7, 40, 130]))
                out[row, column : column + length] = column
                column += length
        if kind == "left padding":
            padding = min(columns // 3 + row, columns - 1)
            out[row] = np.minimum(own[row], padding)
        if kind == "right padding":
            length = columns - columns // 3
            out[row, length:] = own[row, length:]
    if kind == "alone":
        out = own
    if kind == "any":
        out = np.minimum(rng.integers(0, columns, (rows, columns)), own)
    return out.astype(np.int32)


def masked(starts_BT: np.ndarray) -> Visibility:
    """The same visibility as one additive mask."""
    columns = np.arange(starts_BT.shape[1])
    seen = (columns[None, None] <= columns[None, :, None]) & (columns[None, None] >= starts_BT[:, :, None])
    mask = np.where(seen, 0.0, -1e30).astype("float32")[:, None]
    return Visibility(paddle.to_tensor(starts_BT), 0, None, paddle.to_tensor(mask))


def by_parts(
    qkv: paddle.Tensor, turns: paddle.Tensor, visible: Visibility, heads: tuple[int, int, int]
) -> paddle.Tensor:
    """Plain operators in fp32."""
    num_heads, num_kv_heads, dim = heads
    q, k, v = qkv.reshape([*qkv.shape[:2], -1, dim]).split([num_heads, num_kv_heads, num_kv_heads], axis=2)
    q, k = rotate_reference(q, turns), rotate_reference(k, turns)
    return attention_reference(q, k, v, visible).reshape([*qkv.shape[:2], num_heads * dim])


def run(
    qkv: paddle.Tensor,
    turns: paddle.Tensor,
    visible: Visibility,
    heads: tuple[int, int, int],
    dropout: float = 0.0,
) -> paddle.Tensor:
    num_heads, num_kv_heads, dim = heads
    sizes = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": dim}
    return native.self_attention(qkv, turns, visible, **sizes, dropout=dropout)


def draw(shape: tuple[int, ...], dtype: str, seed: int) -> paddle.Tensor:
    values = np.random.default_rng(seed).normal(size=shape).astype("float32") * 1.5
    return paddle.to_tensor(values).astype(dtype)


def compare(actual: paddle.Tensor, expected: paddle.Tensor, bound: float) -> None:
    a, b = actual.astype("float32").numpy(), expected.numpy()
    assert a.shape == b.shape
    assert np.abs(a - b).max() <= bound * np.abs(b).max()


def gradient(out: paddle.Tensor, qkv: paddle.Tensor, grad: paddle.Tensor) -> paddle.Tensor:
    out.backward(grad)
    result = qkv.grad.clone()
    qkv.clear_gradient()
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_backward(library: Library, shape: tuple[int, ...], dtype: str) -> None:
    rows, columns, num_heads, num_kv_heads, dim = shape
    heads = (num_heads, num_kv_heads, dim)
    rng = np.random.default_rng(columns)
    turns = rotations(paddle.arange(columns).expand([rows, columns]), dim, 1e4)
    qkv = draw((rows, columns, (num_heads + 2 * num_kv_heads) * dim), dtype, 1)
    grad = draw((rows, columns, num_heads * dim), dtype, 2)
    exact = qkv.astype("float32")
    qkv.stop_gradient = exact.stop_gradient = False
    kinds = ("causal", "packed", "left padding", "right padding", "alone", "any")
    for kind in kinds[:2] if columns > 1000 else kinds:
        visible = masked(starts(kind, rows, columns, rng))
        expected = by_parts(exact, turns, visible, heads)
        actual = run(qkv, turns, visible, heads)
        assert actual.dtype == qkv.dtype
        compare(actual, expected, BOUNDS[dtype])
        with paddle.no_grad():
            np.testing.assert_array_equal(bits(run(qkv, turns, visible, heads)), bits(actual))
        grad_expected = gradient(expected, exact, grad.astype("float32"))
        compare(gradient(actual, qkv, grad), grad_expected, BOUNDS[dtype])


def bits(tensor: paddle.Tensor) -> np.ndarray:
    return tensor.detach().astype("float32").numpy()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 300, 3, 3, 32), (3, 520, 2, 1, 16), (1, 1600, 2, 1, 8)], ids=str)
def test_threads_change_nothing(library: Library, shape: tuple[int, ...], dtype: str) -> None:
    rows, columns, num_heads, num_kv_heads, dim = shape
    heads = (num_heads, num_kv_heads, dim)
    turns = rotations(paddle.arange(columns).expand([rows, columns]), dim, 1e4)
    qkv = draw((rows, columns, (num_heads + 2 * num_kv_heads) * dim), dtype, 3)
    grad = draw((rows, columns, num_heads * dim), dtype, 4)
    qkv.stop_gradient = False
    starts_BT = starts("packed", rows, columns, np.random.default_rng(0))
    starts_BT[:, columns // 2 :] = 1
    visible = Visibility(paddle.to_tensor(starts_BT), 0, None, None)
    results = []
    for threads in (1, 2, 5):
        library.set_threads(threads)
        out = run(qkv, turns, visible, heads)
        results.append((bits(out), bits(gradient(out, qkv, grad))))
    for out, grad_qkv in results[1:]:
        np.testing.assert_array_equal(out, results[0][0])
        np.testing.assert_array_equal(grad_qkv, results[0][1])


def test_memory_that_is_not_contiguous_and_turns_of_many_heads(library: Library) -> None:
    heads, columns = (4, 2, 8), 20
    turns = rotations(paddle.arange(columns).unsqueeze(0), 8, 1e4, num_heads=6)
    visible = masked(starts("causal", 1, columns, np.random.default_rng(0)))
    wide = draw((1, columns, 2, 64), "float32", 5)
    qkv = wide[:, :, 1]
    qkv.stop_gradient = False
    whole = qkv.detach().clone()
    whole.stop_gradient = False
    grad = draw((1, 32, columns), "float32", 6).transpose([0, 2, 1])
    expected, actual = by_parts(whole, turns[:, :, :1], visible, heads), run(qkv, turns, visible, heads)
    compare(actual, expected, 1e-5)
    actual.backward(grad)
    expected.backward(grad)
    compare(qkv.grad, whole.grad, 1e-5)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing(library: Library, shape: tuple[int, int]) -> None:
    qkv = paddle.zeros([*shape, 32])
    qkv.stop_gradient = False
    turns = paddle.zeros([*shape, 1, 4], "complex64")
    out = run(qkv, turns, Visibility(paddle.zeros(shape, "int32"), 0, (), None), (2, 1, 8))
    assert out.shape == [*shape, 16]
    out.sum().backward()
    assert qkv.grad is None or qkv.grad.shape == qkv.shape


def test_frozen_input_keeps_nothing(library: Library) -> None:
    qkv = draw((1, 9, 32), "float32", 7)
    turns = rotations(paddle.arange(9).unsqueeze(0), 8, 1e4)
    out = run(qkv, turns, masked(np.zeros((1, 9), np.int32)), (2, 1, 8))
    assert out.stop_gradient


def test_what_is_not_a_number_stays_visible(library: Library) -> None:
    qkv = draw((1, 200, 32), "float32", 8)
    qkv[0, 150, 3] = float("nan")
    turns = rotations(paddle.arange(200).unsqueeze(0), 8, 1e4)
    out = run(qkv, turns, masked(np.zeros((1, 200), np.int32)), (2, 1, 8)).numpy()
    assert np.isnan(out[0, 150, :8]).all() and np.isfinite(out[0, :150]).all()


def test_large_scores(library: Library) -> None:
    """Weights of one key each, and none that overflows."""
    qkv = draw((1, 150, 32), "float32", 9) * 40.0
    turns = rotations(paddle.arange(150).unsqueeze(0), 8, 1e4)
    visible = masked(np.zeros((1, 150), np.int32))
    compare(run(qkv, turns, visible, (2, 1, 8)), by_parts(qkv, turns, visible, (2, 1, 8)), 1e-3)


def test_cache_and_dropout_go_through_the_reference(library: Library) -> None:
    qkv = draw((1, 6, 32), "bfloat16", 10)
    turns = rotations(paddle.arange(6).unsqueeze(0), 8, 1e4)
    visible = masked(np.zeros((1, 6), np.int32))
    paddle.seed(1)
    dropped = run(qkv, turns, visible, (2, 1, 8), dropout=0.5)
    assert dropped.dtype == paddle.bfloat16
    assert np.abs(bits(dropped) - bits(run(qkv, turns, visible, (2, 1, 8)))).max() > 0.1


def test_memory_grows_with_the_length_only(library: Library) -> None:
    """Workspace of the longest row: a few times the projection, never the square of the length."""
    size = library.declare("ek_attention_workspace", *[native._L] * 5, result=native._L)
    assert size(1, 8192, 9, 3, 64) <= 8192 * 15 * 64 * 1.01
    assert size(64, 8192, 9, 3, 64) <= 16 << 20
    assert size(8, 512, 9, 3, 64) == 0


def shared_prompts(rows: int, columns: int, rng: np.random.Generator) -> Visibility:
    """Rows of samples whose two answers share a prompt."""
    seen = np.zeros((rows, columns, 3), np.int32)
    for row in range(rows):
        start = 0
        while start < columns:
            prompt, first, second = rng.choice([1, 5, 20, 140, 270], 3)
            stop = min(columns, start + prompt + first + second)
            seen[row, start:stop, 0] = start
            begin = start + prompt
            seen[row, begin + first : stop, 1:] = (begin, begin + first)
            start = stop
    starts_BT, gaps = paddle.to_tensor(seen[..., 0]), paddle.to_tensor(seen[..., 1:])
    return Visibility(starts_BT, 0, None, whole_mask(starts_BT, gaps, num_past=0), gaps)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(2, 63, 3, 3, 64), (2, 600, 6, 2, 16), (1, 1100, 3, 1, 16)], ids=str)
def test_answers_that_share_a_prompt(library: Library, shape: tuple[int, ...], dtype: str) -> None:
    rows, columns, num_heads, num_kv_heads, dim = shape
    heads = (num_heads, num_kv_heads, dim)
    turns = rotations(paddle.arange(columns).expand([rows, columns]), dim, 1e4)
    visible = shared_prompts(rows, columns, np.random.default_rng(columns))
    qkv = draw((rows, columns, (num_heads + 2 * num_kv_heads) * dim), dtype, 1)
    grad = draw((rows, columns, num_heads * dim), dtype, 2)
    exact = qkv.astype("float32")
    qkv.stop_gradient = exact.stop_gradient = False
    expected, actual = by_parts(exact, turns, visible, heads), run(qkv, turns, visible, heads)
    compare(actual, expected, BOUNDS[dtype])
    grad_expected = gradient(expected, exact, grad.astype("float32"))
    compare(gradient(actual, qkv, grad), grad_expected, BOUNDS[dtype])
