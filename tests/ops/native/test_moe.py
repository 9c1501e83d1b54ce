"""Rows to experts and back: native kernels at every level against the references."""

import numpy as np
import paddle
import pytest

from erniekit.ops import moe
from erniekit.ops.kernels.library import Library, find_library
from erniekit.ops.native import moe as native

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)


def slots_of(tokens: int, top_k: int, dropped: float) -> moe.SortedSlots:
    random = np.random.default_rng(tokens)
    chosen = np.stack([random.permutation(7)[:top_k] for _ in range(tokens)])
    lost = random.random([tokens, top_k]) < dropped
    return moe.sort_slots(paddle.to_tensor(chosen), 7, paddle.to_tensor(lost) if dropped else None)


def same(found: paddle.Tensor, expected: paddle.Tensor, dtype: str) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    if found.size:
        limit = (1e-6 if dtype == "float32" else 1e-2) * max(
            float(expected.astype("float32").abs().max()), 1.0
        )
        pair = (tensor.astype("float32").numpy() for tensor in (found, expected))
        np.testing.assert_allclose(*pair, rtol=0, atol=limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("width", [1, 16, 37])
@pytest.mark.parametrize(
    ("tokens", "top_k", "dropped"), [(1, 1, 0.0), (50, 3, 0.0), (50, 3, 0.4), (3, 2, 1.0)]
)
def test_forward_and_gradients(
    library: Library, tokens: int, top_k: int, dropped: float, width: int, dtype: str
) -> None:
    slots = slots_of(tokens, top_k, dropped)
    random = np.random.default_rng(0)

    def draw(*shape: int) -> paddle.Tensor:
        return paddle.to_tensor(random.standard_normal(shape).astype(np.float32))

    x, y = draw(tokens, width).astype(dtype), draw(slots.tokens_M.shape[0], width).astype(dtype)
    weights = draw(tokens, top_k)
    seeds = draw(*y.shape).astype(dtype), draw(tokens, width).astype(dtype)
    found = []
    for dispatch, combine in (
        (native.dispatch_rows_native, native.combine_rows_native),
        (moe.dispatch_rows_reference, moe.combine_rows_reference),
    ):
        leaves = [tensor.clone().detach() for tensor in (x, y, weights)]
        for leaf in leaves:
            leaf.stop_gradient = False
        sorted_rows, combined = dispatch(leaves[0], slots), combine(leaves[1], leaves[2], slots)
        results = [sorted_rows, combined]
        if not sorted_rows.size:
            found.append(results)
            continue
        paddle.autograd.backward(results, [seed.clone() for seed in seeds])
        found.append([*results, *(leaf.grad for leaf in leaves)])
    for mine, theirs in zip(*found, strict=True):
        same(mine, theirs, dtype)


def test_results_do_not_depend_on_threads_and_without_gradients_nothing_is_kept(library: Library) -> None:
    slots = slots_of(90, 3, 0.2)
    y = paddle.randn([slots.tokens_M.shape[0], 33])
    weights = paddle.rand([90, 3])
    found = []
    for threads in (1, 2):
        library.set_threads(threads)
        with paddle.no_grad():
            out = native.combine_rows_native(y, weights, slots)
        assert out.stop_gradient
        found.append(out.numpy().tobytes())
    assert found[0] == found[1]


def test_frozen_experts_and_frozen_routers(library: Library) -> None:
    slots = slots_of(9, 2, 0.0)
    for wanted in ((True, False), (False, True)):
        y, weights = paddle.randn([18, 5]), paddle.rand([9, 2])
        y.stop_gradient, weights.stop_gradient = (not want for want in wanted)
        native.combine_rows_native(y, weights, slots).sum().backward()
        assert (y.grad is not None, weights.grad is not None) == wanted


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k"), [(1, 1, 1), (0, 4, 2), (50, 7, 3), (300, 64, 6), (40, 8, 8)]
)
def test_choices_and_sorted_slots(library: Library, tokens: int, experts: int, top_k: int) -> None:
    random = np.random.default_rng(tokens)
    # All different, so that which is larger is no question.
    scores = paddle.to_tensor(
        random.permuted(np.tile(np.arange(experts, dtype=np.float32), (tokens, 1)), axis=1)
    )
    chosen = native.top_k_native(scores, top_k)
    assert chosen.dtype == paddle.int64 and chosen.shape == [tokens, top_k]
    if not tokens:
        return
    np.testing.assert_array_equal(chosen.numpy(), moe.top_k_reference(scores, top_k).numpy())
    found = native.sort_slots_native(chosen, experts)
    expected = moe.sort_slots_reference(chosen, experts)
    for name in ("tokens_M", "slots_M", "places_Nk", "offsets"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype == paddle.int64
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def test_of_equal_scores_the_first_is_chosen(library: Library) -> None:
    scores = paddle.to_tensor([[0.5, 0.25, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert native.top_k_native(scores, 2).tolist() == [[0, 2], [0, 1]]
