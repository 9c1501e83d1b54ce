"""Decoding of a batch of prompts: one pass over the prompts, then one token a step for each.

Prompts of unequal length are padded on the left, so that all of them end at the same column and
the newest token of every row is the last one. What a position may attend to is the one tensor
`attend_from_BT` (see `erniekit.nn.attention`): a row's first real column, and for a padded
position only itself; padding therefore changes no answer.

    B rows, R rows whose answer goes on, T columns of this pass, V vocabulary
"""

from collections.abc import Collection, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from erniekit.errors import DataError
from erniekit.generate.sampler import Sampler, Sampling
from erniekit.generate.stream import TextStream

# Columns of a prompt that go through the model at once: bounds the memory of attention scores.
PREFILL_CHUNK = 512


@dataclass(frozen=True)
class Event:
    """What happened to one row: a token, the text that became certain, and perhaps the end.

    `finish_reason` is `eos` (the model ended its answer), `stop` (a stop string), `length`
    (max_new_tokens) or `context` (the model's context is full); None while the answer goes on.
    """

    row: int
    token_id: int
    text: str
    finish_reason: str | None = None


def check_prompts(prompts: Sequence[Sequence[int]], *, max_context: int) -> None:
    """Refuse prompts that leave no room for an answer, or hold nothing.

    Raises:
        DataError: names the prompt, its length and the limit.
    """
    for index, prompt in enumerate(prompts, start=1):
        name = f"prompt {index}" if len(prompts) > 1 else "the prompt"
        if not prompt:
            raise DataError(f"{name} is empty: there is nothing to continue")
        if len(prompt) >= max_context:
            raise DataError(
                f"{name} has {len(prompt)} tokens, but the model's context is {max_context} tokens and the "
                "answer needs room in it; shorten the prompt"
            )


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    end_ids: Collection[int],
    max_context: int,
    streams: Sequence[TextStream] | None = None,
    first_row: int = 0,
) -> Generator[Event, None, None]:
    """Answer prompts; yields an event for every token of every row, in the order they come.

    The token that ends an answer is an event too (with no text). Closing the iterator ends the
    work and frees the cache. The same arguments give the same tokens.

    Args:
        model: an assembled model in evaluation mode.
        prompts: token ids, one list a row.
        end_ids: tokens that end an answer.
        max_context: columns that the model was made for, prompt and answer together.
        streams: text side of each row; without them events carry no text and `stop` has no effect.
        first_row: number of the first row among all that are answered, for its random generator.

    Raises:
        DataError: a prompt is empty or too long, or holds a picture that the model cannot see.
        RunError: the model computes something that is not finite.
    """
    check_prompts(prompts, max_context=max_context)
    if not prompts:
        return
    vision = model.config.vision_tokens()
    for prompt in prompts:
        vision.refuse(np.array(prompt))
    sides: Sequence[TextStream | None] = streams or [None] * len(prompts)
    rows = [
        _Row(index, Sampler(sampling, prompt, end_ids, row=first_row + index), stream)
        for index, (prompt, stream) in enumerate(zip(prompts, sides, strict=True))
    ]
    longest = max(map(len, prompts))
    budget = [min(sampling.max_new_tokens, max_context - len(prompt)) for prompt in prompts]
    decoder = CachedDecoder(model, prompts, num_columns=longest + max(budget))
    try:
        logits_RV = decoder.prefill()
        while rows:
            drawn = [row.sampler.draw(logits_V) for row, logits_V in zip(rows, logits_RV, strict=True)]
            for row, token in zip(rows, drawn, strict=True):
                yield row.take(token, end_ids, budget[row.index], sampling.max_new_tokens)
            going = [(row, token) for row, token in zip(rows, drawn, strict=True) if not row.finished]
            rows = [row for row, _ in going]
            if rows:
                logits_RV = decoder.step([token for _, token in going], [row.index for row in rows])
    finally:
        decoder.close()


class _Row:
    """State of one answer."""

    def __init__(self, index: int, sampler: Sampler, stream: TextStream | None) -> None:
        self.index = index
        self.sampler = sampler
        self.finished = False
        self._stream = stream
        self._num_tokens = 0

    def take(self, token: int, end_ids: Collection[int], budget: int, max_new_tokens: int) -> Event:
        """Account for the token that was drawn."""
        self._num_tokens += 1
        reason, text = None, ""
        if token in end_ids:
            reason = "eos"
        else:
            text = self._stream.push(token) if self._stream else ""
            if self._stream and self._stream.stopped_at is not None:
                reason = "stop"
            elif self._num_tokens >= budget:
                reason = "length" if budget >= max_new_tokens else "context"
        if reason is not None:
            self.finished = True
            if self._stream:
                text += self._stream.flush()
                if self._stream.stopped_at is not None and reason != "eos":
                    reason = "stop"
        return Event(self.index, token, text, reason)


class CachedDecoder:
    """A batch of left-padded rows and the cache of what the model computed for them.

    Args:
        num_columns: room of the cache, prompt and answer.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], *, num_columns: int) -> None:
        self._model = model
        self._vision = model.config.vision_tokens()
        self._width = max(map(len, prompts))
        self._padding_B = np.array([self._width - len(prompt) for prompt in prompts], dtype=np.int64)
        self._ids_BT = np.zeros((len(prompts), self._width), dtype=np.int64)
        for row, prompt in enumerate(prompts):
            self._ids_BT[row, self._padding_B[row] :] = prompt
        self._column = 0
        self._cache: Any = _new_cache(model, len(prompts), num_columns)
        self._native: Any = _native_steps(model, self._cache, self._padding_B)

    def prefill(self) -> np.ndarray:
        """Take in the prompts; returns the logits [B, V] after the last token of each."""
        hidden_BD = None
        for start in range(0, self._width, PREFILL_CHUNK):
            hidden_BD = self._forward(self._ids_BT[:, start : start + PREFILL_CHUNK])
        return self._logits(hidden_BD)

    def step(self, ids_R: Sequence[int], rows: Sequence[int]) -> np.ndarray:
        """Take in one token for each of these rows, ascending; returns the logits [R, V] after it.

        They are valid until the next step.
        """
        if self._native is not None:
            return self._native.step(ids_R, rows)
        ids_BT = np.zeros((len(self._padding_B), 1), dtype=np.int64)
        ids_BT[rows, 0] = ids_R
        return self._logits(self._forward(ids_BT))[rows]

    def close(self) -> None:
        """Free the cache."""
        self._cache = self._native = None

    def _forward(self, ids_BT: np.ndarray) -> Any:
        """Hidden states [B, D] of the last column of these."""
        import paddle

        columns_T = np.arange(self._column, self._column + ids_BT.shape[1])
        padding_B1 = self._padding_B[:, None]
        positions_BT = np.maximum(columns_T[None, :] - padding_B1, 0)
        attend_from_BT = np.where(columns_T[None, :] < padding_B1, columns_T[None, :], padding_B1)
        types_BT = self._vision.types_of(ids_BT)
        types = {} if types_BT is None else {"token_type_ids_BT": paddle.to_tensor(types_BT)}
        with paddle.no_grad():
            hidden_BTD = self._model(
                paddle.to_tensor(ids_BT),
                paddle.to_tensor(positions_BT),
                paddle.to_tensor(attend_from_BT.astype(np.int32)),
                cache=self._cache,
                **types,
            )
        self._column += ids_BT.shape[1]
        return hidden_BTD[:, -1]

    def _logits(self, hidden_BD: Any) -> np.ndarray:
        import paddle

        with paddle.no_grad():
            return self._model.logits(hidden_BD).numpy()


def _native_steps(model: Any, cache: Any, padding_B: np.ndarray) -> Any:
    from erniekit.generate.native import native_steps

    return native_steps(model, cache, padding_B)


def _new_cache(model: Any, batch: int, num_columns: int) -> Any:
    from erniekit.nn.cache import KVCache

    config = model.config
    return KVCache(
        config.num_hidden_layers,
        batch,
        num_columns,
        config.num_key_value_heads,
        config.head_dim,
        model.cache_dtype,
    )
