"""Decoding against the plain way: the whole sequence through the model again for every token."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import paddle
import pytest

from erniekit.errors import DataError, RunError
from erniekit.generate import engine
from erniekit.generate.engine import Event, generate
from erniekit.generate.sampler import Sampling
from erniekit.generate.stream import TextStream
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.model import Ernie45
from erniekit.testing.tiny_checkpoint import tiny_moe_config

VOCAB = 60
GREEDY = Sampling(max_new_tokens=8, temperature=0.0)
PROMPTS = [[5, 9, 3, 30, 12], [7], [40, 41, 42]]


class Letters:
    """A decoder whose tokens are letters from A on."""

    def push(self, token_id: int) -> str:
        return chr(65 + token_id)

    def flush(self) -> str:
        return ""


@pytest.fixture(scope="module")
def model() -> Ernie45:
    paddle.seed(3)
    config = Ernie45Config(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    model = Ernie45(config)
    for parameter in model.parameters():
        if len(parameter.shape) == 2:
            parameter.set_value(paddle.normal(0.0, 0.3, parameter.shape))
        else:
            parameter.set_value(paddle.ones(parameter.shape))
    model.eval()
    return model


def next_by_full_forward(model: Ernie45, ids: Sequence[int]) -> int:
    length = len(ids)
    hidden = model(
        paddle.to_tensor([list(ids)], dtype="int64"),
        paddle.arange(length, dtype="int64").unsqueeze(0),
        paddle.zeros([1, length], dtype="int32"),
    )
    return int(model.logits(hidden[0, -1:]).argmax())


def reference(model: Ernie45, prompt: Sequence[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(next_by_full_forward(model, ids))
    return ids[len(prompt) :]


def collect(events: Sequence[Event], num_rows: int) -> tuple[list[list[int]], list[str]]:
    tokens: list[list[int]] = [[] for _ in range(num_rows)]
    reasons = [""] * num_rows
    for event in events:
        assert reasons[event.row] == "", "an event after the end of its row"
        tokens[event.row].append(event.token_id)
        reasons[event.row] = event.finish_reason or ""
    return tokens, reasons


def test_batch_of_unequal_prompts_gives_each_row_its_own_answer(model: Ernie45) -> None:
    tokens, reasons = collect(list(generate(model, PROMPTS, sampling=GREEDY, end_ids=[], max_context=64)), 3)
    assert tokens == [reference(model, prompt, 8) for prompt in PROMPTS]
    assert len({tuple(row) for row in tokens}) == 3
    assert reasons == ["length"] * 3


def test_vision_tokens_reach_their_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts with placeholders, in chunks with and without them, against whole passes with their types."""
    config = tiny_moe_config(2, vocab_size=VOCAB, im_patch_id=9, max_position_embeddings=64)
    seeing = Ernie45(config)
    paddle.seed(5)
    for name, parameter in seeing.named_parameters():
        flat = len(parameter.shape) < 2 or name.endswith("correction_bias")
        parameter.set_value(
            paddle.ones(parameter.shape) if flat else paddle.normal(0.0, 0.3, parameter.shape)
        )
    seeing.eval()
    prompts = [[5, 9, 9, 30, 12], [40, 41, 9]]

    def expected(prompt: list[int]) -> list[int]:
        ids = list(prompt)
        for _ in range(4):
            types = paddle.to_tensor([[int(token == 9) for token in ids]])
            places = paddle.arange(len(ids), dtype="int64").unsqueeze(0)
            whole = seeing(
                paddle.to_tensor([ids]), places, paddle.zeros([1, len(ids)], dtype="int32"), None, types
            )
            ids.append(int(seeing.logits(whole[0, -1:]).argmax()))
        return ids[len(prompt) :]

    short = Sampling(max_new_tokens=4, temperature=0.0)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 2)
    tokens, _ = collect(list(generate(seeing, prompts, sampling=short, end_ids=[], max_context=64)), 2)
    assert tokens == [expected(prompt) for prompt in prompts]
    blind = Ernie45(replace(config, has_tower=True))
    with pytest.raises(DataError, match="vision tower"):
        next(generate(blind, prompts, sampling=short, end_ids=[], max_context=64))


def test_prefill_in_chunks_changes_nothing(model: Ernie45, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = collect(list(generate(model, PROMPTS, sampling=GREEDY, end_ids=[], max_context=64)), 3)
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 2)
    chunks, _ = collect(list(generate(model, PROMPTS, sampling=GREEDY, end_ids=[], max_context=64)), 3)
    assert chunks == whole


def test_end_token_ends_its_row_only(model: Ernie45) -> None:
    expected = [reference(model, prompt, 8) for prompt in PROMPTS]
    end = expected[1][2]
    assert end not in expected[1][:2]
    tokens, reasons = collect(
        list(generate(model, PROMPTS, sampling=GREEDY, end_ids=[end], max_context=64)), 3
    )
    for row, full in enumerate(expected):
        length = full.index(end) + 1 if end in full else 8
        assert tokens[row] == full[:length]
        assert reasons[row] == ("eos" if end in full else "length")


def test_full_context_ends_the_answer_and_says_so(model: Ernie45) -> None:
    tokens, reasons = collect(
        list(generate(model, PROMPTS[:1], sampling=GREEDY, end_ids=[], max_context=9)), 1
    )
    assert tokens == [reference(model, PROMPTS[0], 4)]
    assert reasons == ["context"]


def test_prompts_without_room_or_content_are_refused(model: Ernie45) -> None:
    with pytest.raises(DataError, match="the prompt has 5 tokens, but the model's context is 5"):
        next(generate(model, PROMPTS[:1], sampling=GREEDY, end_ids=[], max_context=5))
    with pytest.raises(DataError, match="prompt 2 is empty"):
        next(generate(model, [[1], []], sampling=GREEDY, end_ids=[], max_context=5))


def test_stop_string_over_two_tokens(model: Ernie45) -> None:
    expected = reference(model, PROMPTS[0], 8)
    letters = "".join(chr(65 + token) for token in expected)
    stop = letters[2:4]
    assert letters.index(stop) == 2
    events = list(
        generate(
            model,
            PROMPTS[:1],
            sampling=GREEDY,
            end_ids=[],
            max_context=64,
            streams=[TextStream(Letters(), [stop])],
        )
    )
    assert "".join(event.text for event in events) == letters[:2]
    assert events[-1].finish_reason == "stop"
    assert len(events) == 4


def test_text_of_the_end_token_is_not_shown(model: Ernie45) -> None:
    expected = reference(model, PROMPTS[0], 8)
    stream = [TextStream(Letters(), [])]
    events = list(
        generate(model, PROMPTS[:1], sampling=GREEDY, end_ids=[expected[3]], max_context=64, streams=stream)
    )
    assert "".join(event.text for event in events) == "".join(chr(65 + token) for token in expected[:3])


def test_sampled_answers_repeat_with_the_seed_whatever_else_is_asked(model: Ernie45) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0, seed=11)

    def answers(prompts: list[list[int]], first_row: int = 0) -> list[list[int]]:
        events = generate(model, prompts, sampling=sampling, end_ids=[], max_context=64, first_row=first_row)
        return collect(list(events), len(prompts))[0]

    together = answers(PROMPTS)
    assert together == answers(PROMPTS)
    assert answers(PROMPTS[1:], first_row=1) == together[1:]


def test_closing_frees_the_cache(model: Ernie45, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = []
    monkeypatch.setattr(engine.CachedDecoder, "close", lambda self: closed.append(self._column))
    with contextlib.closing(generate(model, PROMPTS, sampling=GREEDY, end_ids=[], max_context=64)) as events:
        next(events)
        assert closed == []
    assert closed == [5]


def test_non_finite_model_is_an_error() -> None:
    class Broken:
        config = Ernie45Config(num_hidden_layers=1)
        cache_dtype = "float32"

        def __call__(self, ids: paddle.Tensor, *rest: object, cache: object) -> paddle.Tensor:
            return paddle.zeros([ids.shape[0], ids.shape[1], 4])

        def logits(self, hidden: paddle.Tensor) -> paddle.Tensor:
            return paddle.to_tensor(np.full([hidden.shape[0], 4], np.nan, dtype=np.float32))

    with pytest.raises(RunError, match="not finite"):
        next(generate(Broken(), [[1]], sampling=GREEDY, end_ids=[], max_context=64))
