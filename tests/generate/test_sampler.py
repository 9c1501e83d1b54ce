"""From settings to tokens: defaults, penalties and draws."""

import numpy as np
import pytest

from erniekit.errors import ConfigError, RunError
from erniekit.generate import sampler as module
from erniekit.generate.sampler import Sampler, Sampling, build_sampling

# softmax of these logits: exactly 0.5, 0.25, 0.125, 0.125
LOGITS = np.log(np.array([0.25, 0.5, 0.125, 0.125], dtype=np.float32))


def draw_one(
    logits: np.ndarray, prompt: list[int], drawn: list[int], end_ids: list[int], **fields: float
) -> int:
    """The greedy token after `drawn` were forced by towering logits."""
    sampler = Sampler(Sampling(temperature=0.0, **fields), prompt, end_ids)
    for token in drawn:
        tower = np.zeros(len(logits), dtype=np.float32)
        tower[token] = 1e6
        assert sampler.draw(tower) == token
    return sampler.draw(logits.astype(np.float32))


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits = np.array([3.0, 2.0, -1.0, 1.9])
    assert draw_one(logits, [], [], []) == 0
    assert draw_one(logits, [0], [], [], repetition_penalty=2.0) == 1  # 3/2 = 1.5 < 2
    assert draw_one(logits, [0], [1], [], repetition_penalty=2.0) == 3  # 1.5, 1.0, -1, 1.9
    negative = np.array([-1.0, -1.5])
    assert draw_one(negative, [0], [], [], repetition_penalty=2.0) == 1  # -1 * 2 = -2 < -1.5


def test_frequency_and_presence_penalties_count_the_answer_only() -> None:
    logits = np.array([3.0, 2.0, 0.0])
    assert draw_one(logits, [0, 0, 0], [], [], frequency_penalty=2.0, presence_penalty=2.0) == 0
    assert draw_one(logits, [], [0], [], frequency_penalty=0.6) == 0  # 2.4
    assert draw_one(logits, [], [0, 0], [], frequency_penalty=0.6) == 1  # 1.8
    assert draw_one(logits, [], [0, 0], [], presence_penalty=0.9) == 0  # 2.1, once however often
    assert draw_one(logits, [], [0], [], presence_penalty=1.1) == 1


def test_min_tokens_excludes_end_tokens_until_reached() -> None:
    logits = np.array([5.0, 1.0, 0.0])
    assert draw_one(logits, [], [], [0], min_tokens=2) == 1
    assert draw_one(logits, [], [1], [0], min_tokens=2) == 1
    assert draw_one(logits, [], [1, 1], [0], min_tokens=2) == 0


def test_logits_are_not_changed() -> None:
    logits = LOGITS.copy()
    sampler = Sampler(Sampling(repetition_penalty=2.0, min_tokens=1), [1], [0])
    sampler.draw(logits)
    assert (logits == LOGITS).all()


def test_draws_have_the_frequencies_of_the_distribution() -> None:
    s = Sampling(temperature=1.0, top_p=1.0, seed=7)
    sampler = Sampler(s, [], [])
    counts = np.bincount([sampler.draw(LOGITS) for _ in range(8000)], minlength=4)
    expected = np.array([0.25, 0.5, 0.125, 0.125]) * 8000
    chi_square = ((counts - expected) ** 2 / expected).sum()
    # 0.1 % of right samplers (3 degrees of freedom) exceed this; the seed is fixed.
    assert chi_square < 16.27


def test_same_seed_same_tokens_and_rows_differ() -> None:
    flat = np.zeros(1000, dtype=np.float32)

    def tokens(seed: int, row: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0, top_p=1.0, seed=seed), [], [], row=row)
        return [sampler.draw(flat) for _ in range(20)]

    assert tokens(1, 0) == tokens(1, 0)
    assert tokens(1, 0) != tokens(2, 0)
    assert tokens(1, 0) != tokens(1, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_logits_are_an_error(bad: float) -> None:
    with pytest.raises(RunError, match="not finite"):
        Sampler(Sampling(), [], []).draw(np.array([0.0, bad], dtype=np.float32))


def test_user_over_checkpoint_over_default() -> None:
    assert build_sampling({"temperature": 0.3, "top_k": 5}).temperature == 0.3
    s = build_sampling({"temperature": 0.3, "top_k": 5, "repetition_penalty": 1.2}, temperature=0.9)
    assert (s.temperature, s.top_k, s.top_p, s.repetition_penalty) == (0.9, 5, 1.0, 1.2)


def test_silent_checkpoint_gets_upstream_values() -> None:
    s = build_sampling({"eos_token_id": 2})
    assert (s.temperature, s.top_p, s.top_k) == (0.95, 0.7, 0)


def test_do_sample_false_is_greedy_unless_sampling_is_asked_for() -> None:
    defaults = {"do_sample": False, "temperature": 0.6}
    assert build_sampling(defaults).greedy
    assert build_sampling(defaults, repetition_penalty=1.1).greedy
    assert build_sampling(defaults, top_p=0.9).temperature == 0.6
    assert build_sampling({"do_sample": False, "temperature": 0.0}, top_p=0.9).temperature == 1.0
    assert build_sampling({"do_sample": False, "temperature": 0.0}, top_p=1.0, top_k=0).greedy
    assert build_sampling({"do_sample": True}).temperature == 1.0
    assert build_sampling({"do_sample": True, "temperature": 0.6}, temperature=0).greedy


def test_seed_is_drawn_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.secrets, "randbits", lambda bits: 123)
    assert build_sampling({}).seed == 123
    assert build_sampling({}, generation_seed=5).seed == 5


def test_all_wrong_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        build_sampling({}, temperature=-1, top_p=0.0, top_k=-1, min_p=2, max_new_tokens=0, stop=("",))
    message = str(caught.value)
    for name in ("temperature", "top_p", "top_k", "min_p", "max_new_tokens", "stop"):
        assert f"{name}: " in message
    with pytest.raises(ConfigError, match="temperature: nan"):
        build_sampling({}, temperature=float("nan"))
