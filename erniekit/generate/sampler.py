"""From the logits of the last position to the next token.

The order of operations is that of transformers' `generate`, with the two penalties it does not
have in the place where OpenAI-style servers put them:

    1. repetition_penalty r     tokens of prompt and answer: l / r if l > 0, else l * r
    2. frequency_penalty f      tokens of the answer:        l - f * (times it occurred)
       presence_penalty p       tokens of the answer:        l - p
    3. min_tokens               end tokens are excluded until the answer has that many tokens
    4. temperature t            l / t; t = 0 takes the highest logit, and steps 5-7 do not apply
    5. top_k k                  the k highest logits (all that tie with the k-th)
    6. top_p p                  the fewest most likely tokens whose probabilities reach p
    7. min_p m                  tokens at least m times as likely as the likeliest
    8. one token is drawn from what is left, renormalised

Everything runs in numpy on one row of fp32 logits, with a generator of its own: the same seed
gives the same answer, whatever else the process does and whatever else is in the batch.
"""

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erniekit.errors import ConfigError, RunError
from erniekit.generate.distribution import draw, left_over

# What upstream samples with; used when neither the user nor the checkpoint says anything.
DEFAULT_TEMPERATURE = 0.95
DEFAULT_TOP_P = 0.7


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn, with nothing left open; `build_sampling` makes it."""

    max_new_tokens: int = 1024
    min_tokens: int = 0
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    stream: bool = True
    enable_thinking: bool = False
    seed: int = 0

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def build_sampling(
    defaults: Mapping[str, Any],
    *,
    max_new_tokens: int = 1024,
    min_tokens: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    stop: Sequence[str] = (),
    stream: bool = True,
    enable_thinking: bool = False,
    generation_seed: int | None = None,
) -> Sampling:
    """Settle every value: what the user gave, else what the checkpoint's `generation_config.json` says.

    A value that is `None` is the checkpoint's. `do_sample: false` there means greedy, unless the
    user asks for sampling by any of temperature, top_p, top_k, min_p. A checkpoint that says
    nothing about sampling gets upstream's temperature 0.95 and top_p 0.7. Without a seed one is
    drawn, and kept in the result so that it can be told.

    Args:
        defaults: content of the checkpoint's `generation_config.json`, may be empty.

    Raises:
        ConfigError: a value is out of its range; all such values are named together.
    """
    asked = temperature is not None or (top_p or 1.0) < 1.0 or bool(top_k) or bool(min_p)
    settled = _checkpoint_defaults(defaults, asked_to_sample=asked)
    given = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p}
    given["repetition_penalty"] = repetition_penalty
    settled.update({name: value for name, value in given.items() if value is not None})
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        min_tokens=min_tokens,
        temperature=float(settled["temperature"]),
        top_p=float(settled["top_p"]),
        top_k=int(settled["top_k"]),
        min_p=float(settled["min_p"]),
        repetition_penalty=float(settled["repetition_penalty"]),
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
        stream=stream,
        enable_thinking=enable_thinking,
        seed=secrets.randbits(32) if generation_seed is None else generation_seed,
    )
    _check(sampling)
    return sampling


def _checkpoint_defaults(defaults: Mapping[str, Any], *, asked_to_sample: bool) -> dict[str, float]:
    names = ("temperature", "top_p", "top_k", "min_p")
    said = {name: defaults[name] for name in names if defaults.get(name) is not None}
    do_sample = defaults.get("do_sample")
    settled: dict[str, float] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    if do_sample is None and not said:
        settled.update(temperature=DEFAULT_TEMPERATURE, top_p=DEFAULT_TOP_P)
    settled.update(said)
    if do_sample is False and not asked_to_sample:
        settled["temperature"] = 0.0
    if asked_to_sample and settled["temperature"] == 0.0:
        # Greedy checkpoints may say so by a temperature of 0; what the user asked for must act.
        settled["temperature"] = 1.0
    penalty = defaults.get("repetition_penalty")
    settled["repetition_penalty"] = 1.0 if penalty is None else penalty
    return settled


def _check(sampling: Sampling) -> None:
    """Report all values that are out of range together."""
    s = sampling
    rules = [
        (s.max_new_tokens >= 1, "max_new_tokens", s.max_new_tokens, "at least 1"),
        (0 <= s.min_tokens <= s.max_new_tokens, "min_tokens", s.min_tokens, "between 0 and max_new_tokens"),
        (_is_temperature(s.temperature), "temperature", s.temperature, "0 (greedy), or 0.0001 or more"),
        (0.0 < s.top_p <= 1.0, "top_p", s.top_p, "above 0, at most 1 (1 turns it off)"),
        (s.top_k >= 0, "top_k", s.top_k, "0 (off) or more"),
        (0.0 <= s.min_p <= 1.0, "min_p", s.min_p, "between 0 (off) and 1"),
        (0.0 < s.repetition_penalty < float("inf"), "repetition_penalty", s.repetition_penalty, "above 0"),
        (abs(s.frequency_penalty) <= 2.0, "frequency_penalty", s.frequency_penalty, "between -2 and 2"),
        (abs(s.presence_penalty) <= 2.0, "presence_penalty", s.presence_penalty, "between -2 and 2"),
        (all(s.stop), "stop", list(s.stop), "texts that are not empty"),
        (s.seed >= 0, "generation_seed", s.seed, "0 or more"),
    ]
    wrong = [
        f"{name}: {value} is out of range; write {allowed}" for ok, name, value, allowed in rules if not ok
    ]
    if wrong:
        raise ConfigError("\n".join(wrong))


def _is_temperature(value: float) -> bool:
    """Below 1e-4, other than 0, quotients of logits would leave the range of numbers."""
    return value == 0.0 or 1e-4 <= value < float("inf")


class Sampler:
    """Draws the tokens of one answer; holds its counts and its generator.

    Args:
        prompt_ids: tokens of the prompt (the repetition penalty counts them).
        end_ids: tokens that end an answer (excluded until `min_tokens`).
        row: number of the answer among those asked for together; each has a generator of its own.
    """

    def __init__(
        self, sampling: Sampling, prompt_ids: Sequence[int], end_ids: Collection[int], *, row: int = 0
    ) -> None:
        self._sampling = sampling
        self._seen = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._end_ids = np.asarray(sorted(end_ids), dtype=np.int64)
        self._counts: dict[int, int] = {}
        self._num_drawn = 0
        self._generator = np.random.default_rng([sampling.seed, row])

    def draw(self, logits_V: np.ndarray) -> int:
        """The next token.

        Args:
            logits_V: fp32 logits of the last position; not changed.

        Raises:
            RunError: the logits are not finite.
        """
        top = float(logits_V.max())
        if not np.isfinite(top):
            raise RunError(
                f"the model's logits for token {self._num_drawn + 1} of the answer are not finite; the "
                "checkpoint may be damaged, or its numbers too large for compute_type"
            )
        logits_V = self._penalise(logits_V)
        if self._sampling.greedy:
            token = int(logits_V.argmax())
        else:
            s = self._sampling
            tokens, weights = left_over(
                logits_V, temperature=s.temperature, top_k=s.top_k, top_p=s.top_p, min_p=s.min_p
            )
            index = draw(weights, self._generator.random())
            token = index if tokens is None else int(tokens[index])
        self._num_drawn += 1
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalise(self, logits_V: np.ndarray) -> np.ndarray:
        """Steps 1 to 3; returns the input itself when none applies."""
        s = self._sampling
        answered = np.fromiter(self._counts, dtype=np.int64, count=len(self._counts))
        exclude_end = self._num_drawn < s.min_tokens and self._end_ids.size > 0
        penalised = s.repetition_penalty != 1.0 or s.frequency_penalty or s.presence_penalty
        if not penalised and not exclude_end:
            return logits_V
        logits_V = logits_V.astype(np.float32, copy=True)
        if s.repetition_penalty != 1.0:
            seen = np.union1d(self._seen, answered)
            values = logits_V[seen]
            factors = np.where(values > 0, 1.0 / s.repetition_penalty, s.repetition_penalty)
            logits_V[seen] = values * factors
        if answered.size and (s.frequency_penalty or s.presence_penalty):
            counts = np.fromiter(self._counts.values(), dtype=np.float32, count=len(self._counts))
            logits_V[answered] -= s.frequency_penalty * counts + s.presence_penalty
        if exclude_end:
            logits_V[self._end_ids] = -np.inf
        return logits_V
