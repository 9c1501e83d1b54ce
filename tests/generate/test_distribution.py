"""What is left of distributions, worked by hand and against a second formula; where a draw falls."""

from typing import Any

import numpy as np
import pytest

from erniekit.generate.distribution import distribution, draw

NEUTRAL = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
# softmax of these logits: exactly 0.5, 0.25, 0.125, 0.125
LOGITS = np.log(np.array([0.25, 0.5, 0.125, 0.125], dtype=np.float32))


def table(logits: np.ndarray, **fields: Any) -> dict[int, float]:
    settings: dict[str, Any] = {**NEUTRAL, **fields}
    tokens, probabilities = distribution(logits, **settings)
    return {int(t): float(p) for t, p in zip(tokens, probabilities, strict=True)}


def test_temperature_by_hand() -> None:
    # temperature 0.5 squares the probabilities: 1/16, 1/4, 1/64, 1/64 over their sum 22/64
    assert table(LOGITS, temperature=0.5) == pytest.approx({0: 4 / 22, 1: 16 / 22, 2: 1 / 22, 3: 1 / 22})


def test_top_k_by_hand_keeps_ties() -> None:
    assert table(LOGITS, top_k=2) == pytest.approx({0: 1 / 3, 1: 2 / 3})
    assert table(LOGITS, top_k=3) == pytest.approx({0: 0.25, 1: 0.5, 2: 0.125, 3: 0.125})
    assert len(table(LOGITS, top_k=0)) == len(table(LOGITS, top_k=99)) == 4


def test_top_p_by_hand_keeps_the_token_that_reaches_it() -> None:
    assert table(LOGITS, top_p=0.49) == {1: 1.0}
    assert table(LOGITS, top_p=0.51) == pytest.approx({0: 1 / 3, 1: 2 / 3})
    assert table(LOGITS, top_p=0.8) == pytest.approx({1: 4 / 7, 0: 2 / 7, 2: 1 / 7})


def test_min_p_by_hand() -> None:
    assert table(LOGITS, min_p=0.4) == pytest.approx({0: 1 / 3, 1: 2 / 3})
    assert table(LOGITS, min_p=1.0) == {1: 1.0}


def test_top_p_applies_to_what_temperature_and_top_k_leave() -> None:
    # top_k 2 leaves 1/3 and 2/3; 0.66 is reached by the first of them, though it had only 0.5 before
    assert table(LOGITS, top_k=2, top_p=0.66) == {1: 1.0}
    # temperature 0.5 gives token 1 a share of 16/22 = 0.727
    assert table(LOGITS, temperature=0.5, top_p=0.7) == {1: 1.0}


def second_formula(logits: np.ndarray, s: dict[str, Any]) -> np.ndarray:
    """Dense and sorted from the least likely up, as torch implementations have it."""
    z = logits.astype(np.float64) / s["temperature"]
    if s["top_k"]:
        z[z < np.sort(z)[::-1][min(s["top_k"], z.size) - 1]] = -np.inf
    ascending = np.argsort(z, kind="stable")
    p = np.exp(z - z.max())
    p /= p.sum()
    remove = np.cumsum(p[ascending]) <= 1 - s["top_p"]
    remove[-1] = False
    z[ascending[remove]] = -np.inf
    p = np.exp(z - z.max())
    p /= p.sum()
    p[p < s["min_p"] * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize("seed", range(60))
def test_agrees_with_second_formula(seed: int) -> None:
    """Small vocabularies, in double precision, and large ones, whose sums are single."""
    random = np.random.default_rng(seed)
    size = int(random.choice([5, 300, 4000, 5000, 49152]))
    logits = random.normal(scale=float(random.choice([0.01, 1.0, 4.0])), size=size).astype(np.float32)
    s: dict[str, Any] = {
        "temperature": float(random.uniform(0.2, 2)),
        "top_k": int(random.choice([0, 1, 40, 3000])),
        "top_p": float(random.choice([1.0, 0.9, 0.3])),
        "min_p": float(random.choice([0.0, 0.05])),
    }
    tokens, probabilities = distribution(logits, **s)
    dense = np.zeros(size)
    dense[tokens] = probabilities
    expected = second_formula(logits, s)
    # Whether the last token still belongs to top_p may hang on a rounding of the sum over all.
    assert (dense != 0).sum() - (expected != 0).sum() in ((0,) if size <= 4096 else (-1, 0, 1))
    np.testing.assert_allclose(dense, expected, atol=1e-12 if size <= 4096 else 2e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [5000, 103424])
def test_ties_and_excluded_tokens_of_a_large_vocabulary(size: int) -> None:
    logits = np.full(size, 1.5, np.float32)
    logits[:10] = -np.inf
    whole = table(logits)
    assert whole.pop(0) == 0.0
    assert len(table(logits, top_k=7)) == size - 10
    assert len(table(logits, top_p=0.5)) == pytest.approx((size - 10) / 2, abs=2)
    assert len(table(logits, min_p=0.5)) == size - 10
    logits[4321] = 9.0
    assert list(table(logits, top_k=1)) == [4321]
    assert list(table(logits, top_p=0.001)) == [4321]


@pytest.mark.parametrize("size", [6, 4096, 4097, 103424])
def test_a_draw_is_where_the_uniform_number_falls(size: int) -> None:
    weights = np.random.default_rng(0).exponential(size=size).astype(np.float32)
    weights[[0, size // 2, size - 1]] = 0.0
    edges = np.cumsum(weights, dtype=np.float64)
    for uniform in (0.0, 0.1234, 0.5, 0.77, 0.999, 1 - 2**-53):
        index = draw(weights, uniform)
        assert weights[index] > 0
        low = edges[index - 1] if index else 0.0
        # Sums of parts are single precision.
        assert low - 1e-5 * edges[-1] <= uniform * edges[-1] <= edges[index] + 1e-5 * edges[-1]


def test_draws_of_a_large_vocabulary_have_its_frequencies() -> None:
    weights = np.zeros(50000, np.float32)
    weights[[3, 200, 31000, 49999]] = [0.25, 0.5, 0.125, 0.125]
    random = np.random.default_rng(7)
    counts = np.bincount([draw(weights, random.random()) for _ in range(8000)], minlength=50000)
    expected = weights[weights > 0] * 8000
    chi_square = ((counts[weights > 0] - expected) ** 2 / expected).sum()
    assert counts[weights == 0].sum() == 0
    # 0.1 % of right ways to draw (3 degrees of freedom) exceed this; the seed is fixed.
    assert chi_square < 16.27
