"""Routing and sorted experts against numbers worked by hand and a loop over tokens."""

import numpy as np
import paddle
import pytest

from erniekit.ops import gradients, moe


def log(*rows: list[float]) -> paddle.Tensor:
    """Logits whose softmax gives these rows (each sums to 1)."""
    return paddle.to_tensor(np.log(np.array(rows, dtype=np.float32)))


def test_the_bias_chooses_and_does_not_weigh() -> None:
    logits = log([0.5, 0.3, 0.15, 0.05])
    plain = moe.route(logits, paddle.zeros([4]), top_k=2)
    assert plain.chosen_Nk.tolist() == [[0, 1]]
    np.testing.assert_allclose(plain.weights_Nk.numpy(), [[0.5 / 0.8, 0.3 / 0.8]], rtol=1e-6)
    # With 0.25 more the last one is at 0.30, above 0.15 but below 0.3 (0.30000001 in fp32 needs room).
    biased = moe.route(logits, paddle.to_tensor([0.0, 0.0, 0.0, 0.26]), top_k=2)
    assert biased.chosen_Nk.tolist() == [[0, 3]]
    np.testing.assert_allclose(biased.weights_Nk.numpy(), [[0.5 / 0.55, 0.05 / 0.55]], rtol=1e-6)
    assert biased.dropped_Nk is None


def test_weights_may_stay_as_they_are_and_the_divisor_has_a_floor() -> None:
    logits = log([0.5, 0.3, 0.2])
    as_they_are = moe.route(logits, paddle.zeros([3]), top_k=2, normalise=False)
    np.testing.assert_allclose(as_they_are.weights_Nk.numpy(), [[0.5, 0.3]], rtol=1e-6)
    floored = moe.route(logits, paddle.zeros([3]), top_k=2, norm_min=1.0)
    np.testing.assert_allclose(floored.weights_Nk.numpy(), [[0.5, 0.3]], rtol=1e-6)


def test_sigmoid_scores() -> None:
    routing = moe.route(
        paddle.to_tensor([[0.0, np.log(3.0), -9.0]]), paddle.zeros([3]), top_k=2, scoring="sigmoid"
    )
    assert routing.chosen_Nk.tolist() == [[1, 0]]
    np.testing.assert_allclose(routing.scores_NE.numpy()[0, :2], [0.5, 0.75], rtol=1e-6)
    np.testing.assert_allclose(routing.weights_Nk.numpy(), [[0.6, 0.4]], rtol=1e-6)


def test_grouped_experts_give_one_of_each_group() -> None:
    # Groups (0, 1) and (2, 3): within them 0.9, 0.1 and 0.4, 0.6.
    logits = log([0.45, 0.05, 0.2, 0.3])
    routing = moe.route(logits, paddle.zeros([4]), top_k=2, grouped=True)
    assert sorted(routing.chosen_Nk.tolist()[0]) == [0, 3]
    np.testing.assert_allclose(routing.scores_NE.numpy(), [[0.9, 0.1, 0.4, 0.6]], rtol=1e-5)
    np.testing.assert_allclose(sorted(routing.weights_Nk.numpy()[0]), [0.4, 0.6], rtol=1e-5)


def test_the_gradient_of_the_weights_reaches_the_logits_and_not_the_bias() -> None:
    logits = log([0.5, 0.3, 0.15, 0.05])
    logits.stop_gradient = False
    bias = paddle.zeros([4])
    bias.stop_gradient = False
    moe.route(logits, bias, top_k=2).weights_Nk[0, 0].backward()
    # w0 = s0 / (s0 + s1) = 1 / (1 + exp(l1 - l0)): dw0/dl0 = w0 w1.
    np.testing.assert_allclose(logits.grad.numpy(), [[15 / 64, -15 / 64, 0, 0]], atol=1e-6)
    assert bias.grad is None


@pytest.mark.parametrize(
    ("factors", "tokens", "training", "expected"),
    [
        ((6.0, 4.0, 2.0), 128, True, 12),
        ((6.0, 4.0, 2.0), 128, False, 8),
        ((6.0, 4.0, 2.0), 63, True, 1),  # fewer tokens than experts
        ((64.0, 64.0, 64.0), 128, True, 128),
    ],
)
def test_capacity(factors: tuple[float, float, float], tokens: int, training: bool, expected: int) -> None:
    assert moe.expert_capacity(factors, tokens, 64, training=training) == expected


def test_a_full_expert_drops_later_tokens_and_the_rest_sums_to_one() -> None:
    # Everybody wants expert 0 most; it takes two.
    logits = log([0.6, 0.3, 0.1], [0.5, 0.1, 0.4], [0.7, 0.2, 0.1])
    routing = moe.route(logits, paddle.zeros([3]), top_k=2, capacity=2)
    assert routing.chosen_Nk.tolist() == [[0, 1], [0, 2], [0, 1]]
    assert routing.dropped_Nk is not None
    assert routing.dropped_Nk.tolist() == [[False, False], [False, False], [True, False]]
    np.testing.assert_allclose(
        routing.weights_Nk.numpy(), [[2 / 3, 1 / 3], [5 / 9, 4 / 9], [0.0, 1.0]], rtol=1e-6
    )


def test_slots_are_sorted_by_expert_then_by_token() -> None:
    chosen = paddle.to_tensor([[2, 0], [0, 1], [2, 1]])
    slots = moe.sort_slots(chosen, 4)
    assert slots.offsets.tolist() == [0, 2, 4, 6, 6]
    assert slots.slots_M.tolist() == [1, 2, 3, 5, 0, 4]
    assert slots.tokens_M.tolist() == [0, 1, 1, 2, 0, 2]
    assert slots.places_Nk.tolist() == [[4, 0], [1, 2], [5, 3]]


def test_dropped_slots_are_left_out() -> None:
    chosen = paddle.to_tensor([[2, 0], [0, 1], [2, 1]])
    dropped = paddle.to_tensor([[False, False], [True, False], [False, True]])
    slots = moe.sort_slots(chosen, 3, dropped)
    assert slots.offsets.tolist() == [0, 1, 2, 4]
    assert slots.slots_M.tolist() == [1, 3, 0, 4]
    assert slots.places_Nk.tolist() == [[2, 0], [-1, 1], [3, -1]]


def by_loop(
    x: np.ndarray, weight: np.ndarray, chosen: np.ndarray, weights: np.ndarray, dropped: np.ndarray
) -> np.ndarray:
    out = np.zeros([x.shape[0], weight.shape[2]])
    for token in range(x.shape[0]):
        for slot in range(chosen.shape[1]):
            if not dropped[token, slot]:
                out[token] += weights[token, slot] * (x[token] @ weight[chosen[token, slot]])
    return out


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropping", [False, True])
def test_dispatch_product_combine_is_the_sum_over_experts(dtype: str, dropping: bool) -> None:
    random = np.random.default_rng(1)
    tokens, experts, top_k, size, out_size = 23, 5, 2, 6, 7
    x = random.standard_normal([tokens, size])
    weight = random.standard_normal([experts, size, out_size])
    chosen = np.array([random.choice(4, 2, replace=False) for _ in range(tokens)])  # expert 4 gets nothing
    weights = random.random([tokens, top_k]).astype(np.float32)
    dropped = random.random([tokens, top_k]) < 0.3 if dropping else np.zeros([tokens, top_k], bool)
    leaves = [
        paddle.to_tensor(a.astype(np.float32)).astype(t)
        for a, t in ((x, dtype), (weight, dtype), (weights, "float32"))
    ]
    for leaf in leaves:
        leaf.stop_gradient = False
    slots = moe.sort_slots(paddle.to_tensor(chosen), experts, paddle.to_tensor(dropped) if dropping else None)
    rows = moe.dispatch_rows(leaves[0], slots)
    out = moe.combine_rows(moe.grouped_linear(rows, leaves[1], slots.offsets), leaves[2], slots)
    assert out.dtype == leaves[0].dtype
    seed = random.standard_normal([tokens, out_size]).astype(np.float32)
    (out.astype("float32") * paddle.to_tensor(seed)).sum().backward()
    exact = [leaf.detach().astype("float32").numpy().astype(np.float64) for leaf in leaves]
    expected = by_loop(exact[0], exact[1], chosen, exact[2], dropped)
    bound = 1e-5 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(out.astype("float32").numpy(), expected, rtol=bound, atol=10 * bound)

    # Gradients by hand: dx = sum of w (g W^T), dW_e = sum of w x g^T, dw = (x W) . g
    grads = [np.zeros_like(a) for a in exact]
    for token, slot in zip(*np.nonzero(~dropped), strict=True):
        expert, share = chosen[token, slot], exact[2][token, slot]
        grads[0][token] += share * exact[1][expert] @ seed[token]
        grads[1][expert] += share * np.outer(exact[0][token], seed[token])
        grads[2][token, slot] += exact[0][token] @ exact[1][expert] @ seed[token]
    found = [gradients.of(leaf) for leaf in leaves]
    for gradient, grad in zip(found, grads, strict=True):
        assert gradient is not None
        np.testing.assert_allclose(
            gradient.numpy(),
            grad,
            rtol=bound,
            atol=10 * bound * max(1.0, np.abs(grad).max() / 10),
        )
    assert found[1] is not None and not found[1][4].numpy().any()


LOADS = [
    [3, 2, 3],
    [6, 0, 0],
    [0, 0, 5],
    [1, 0, 9, 0, 0, 2],
    [0, 1, 0, 0],
    [4],
    [2, 2],
    [0, 7, 1, 0, 0, 0, 0, 0],
]


@pytest.mark.parametrize("load", LOADS, ids=str)
def test_the_batched_product_is_a_loop_over_experts(load: list[int]) -> None:
    """Values and both gradients against numpy, expert by expert, for even loads, uneven ones and none."""
    random = np.random.default_rng(len(load))
    offsets = np.cumsum([0, *load])
    x, weight = random.standard_normal([offsets[-1], 5]), random.standard_normal([len(load), 5, 3])
    direction = random.standard_normal([offsets[-1], 3])
    leaves = [paddle.to_tensor(array.astype(np.float32), stop_gradient=False) for array in (x, weight)]
    out = moe.grouped_linear_reference(*leaves, paddle.to_tensor(offsets))
    (out * paddle.to_tensor(direction.astype(np.float32))).sum().backward()
    for expert, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
        rows = slice(start, stop)
        found = out[rows].numpy(), leaves[0].grad[rows].numpy(), leaves[1].grad[expert].numpy()
        expected = (
            x[rows] @ weight[expert],
            direction[rows] @ weight[expert].T,
            x[rows].T @ direction[rows],
        )
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "load", [*LOADS, [100, *[0] * 63], [64] * 64, list(range(64))], ids=lambda x: str(x)[:20]
)
def test_tiles_hold_every_row_once_and_little_else(load: list[int]) -> None:
    offsets = np.cumsum([0, *load])
    experts, rows, places = moe._tiles(offsets)
    assert rows.reshape(-1)[places].tolist() == list(range(offsets[-1]))
    owner = np.repeat(np.arange(len(load)), load)
    assert (np.repeat(experts, rows.shape[1])[places] == owner).all()
    assert rows.size <= 3 * offsets[-1] + 2 * len(load) and len(experts) <= 1.5 * len(load) + 1


def test_nothing_but_dropped_slots() -> None:
    chosen = paddle.to_tensor([[0, 1]])
    slots = moe.sort_slots(chosen, 2, paddle.to_tensor([[True, True]]))
    rows = moe.dispatch_rows(paddle.ones([1, 3]), slots)
    assert rows.shape == [0, 3]
    product = moe.grouped_linear(rows, paddle.ones([2, 3, 4]), slots.offsets)
    assert moe.combine_rows(product, paddle.zeros([1, 2]), slots).tolist() == [[0.0] * 4]


def test_sorted_rows_can_be_made_again() -> None:
    from erniekit.ops import remake

    slots = moe.sort_slots(paddle.to_tensor([[1, 0], [0, 1]]), 2)
    rows = moe.dispatch_rows(paddle.to_tensor([[1.0, 2.0], [3.0, 4.0]]), slots)
    again = remake.restore(remake.keep(rows))
    assert again is not rows
    assert again.tolist() == rows.tolist() == [[1.0, 2.0], [3.0, 4.0], [1.0, 2.0], [3.0, 4.0]]


@pytest.mark.parametrize("trained", ["rows", "weight"])
def test_no_rows_are_still_a_function_of_what_is_trained(trained: str) -> None:
    """Processes that had rows wait for the others in the backward pass."""
    x, weight = paddle.zeros([0, 4]), paddle.ones([2, 4, 3])
    chosen = x if trained == "rows" else weight
    chosen.stop_gradient = False
    y = moe.grouped_linear_reference(x, weight, paddle.zeros([3], dtype="int64"))
    slots = moe.sort_slots(paddle.zeros([0, 2], dtype="int64"), 2)
    out = moe.combine_rows_reference(y, paddle.zeros([0, 2]), slots)
    assert y.shape == [0, 3] and out.shape == [0, 3] and not out.stop_gradient
    paddle.concat([out, paddle.ones([1, 3])]).sum().backward()
    assert chosen.grad.shape == chosen.shape and float(chosen.grad.abs().sum()) == 0.0
