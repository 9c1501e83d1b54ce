"""The stages of a model, one after the other in one process: the model's own results and gradients."""

from copy import deepcopy
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.errors import RunError
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from erniekit.parallel.stage_model import Cut, StageView, cut_model, shares_embedding
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.parallel.plans import gradients_of

STAGES = ((0, 1), (1, 3), (3, 4))


def build(**changes: Any) -> Any:
    config = tiny_moe_config(num_hidden_layers=4, **changes)
    model = Ernie45(config)
    random = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.set_value(random.normal(0.2, 0.3, parameter.shape).astype(np.float32))
    return model


def inputs() -> tuple[paddle.Tensor, ...]:
    ids = np.random.default_rng(1).integers(3, 200, (2, 7))
    positions = np.tile(np.arange(7), (2, 1))
    return tuple(map(paddle.to_tensor, (ids, positions, np.zeros((2, 7), np.int32))))


def take_gradients(model: Any) -> dict[str, np.ndarray]:
    found = gradients_of(model)
    for parameter in model.parameters():
        gradients.clear(parameter)
    return found


def test_stages_one_after_the_other_are_the_model() -> None:
    model = build(tie_word_embeddings=False, num_nextn_predict_layers=1)
    hidden, (ahead,) = model.predict_ahead(*inputs())
    (hidden.sum() + ahead.sum()).backward()
    expected = take_gradients(model)
    first, middle, last = (StageView(model, plan, STAGES, stage) for stage in range(3))
    sent = first.model(*inputs())
    middle.received = sent
    last.received = middle.model(*inputs())
    found, (found_ahead,) = last.model.predict_ahead(*inputs())
    np.testing.assert_array_equal(found.numpy(), hidden.numpy())
    np.testing.assert_array_equal(found_ahead.numpy(), ahead.numpy())
    (found.sum() + found_ahead.sum()).backward()
    found_gradients = take_gradients(model)
    assert found_gradients.keys() == expected.keys() and len(expected) > 40
    for name, gradient in expected.items():
        assert np.abs(found_gradients[name] - gradient).max() <= 1e-5 * np.abs(gradient).max(), name
    # The model itself is as it was.
    np.testing.assert_array_equal(model(*inputs()).numpy(), hidden.numpy())


def test_an_embedding_that_was_changed_from_outside_can_be_cut() -> None:
    model = build(num_nextn_predict_layers=1)
    embed = model.model.embed_tokens
    original = embed.forward
    embed.forward = lambda ids: 2.0 * original(ids)
    hidden, (ahead,) = model.predict_ahead(*inputs())
    first, last = (StageView(model, plan, ((0, 2), (2, 4)), stage) for stage in range(2))
    last.received = first.model(*inputs())
    found, (found_ahead,) = last.model.predict_ahead(*inputs())
    np.testing.assert_array_equal(found.numpy(), hidden.numpy())
    np.testing.assert_array_equal(found_ahead.numpy(), ahead.numpy())
    assert last.model.head().weight is embed.weight


def test_a_second_pass_over_one_activation_is_refused() -> None:
    model = build()
    last = StageView(model, plan, STAGES, 2)
    last.received = paddle.ones([2, 7, 32])
    last.model(*inputs())
    with pytest.raises(RunError, match="twice for one micro-batch"):
        last.model(*inputs())


@pytest.mark.parametrize(
    ("changes", "own", "has", "has_not", "copies"),
    [
        ({}, (0,), ["model.embed_tokens"], ["model.norm", "lm_head"], []),
        ({}, (1,), [], ["model.embed_tokens", "model.norm", "lm_head"], []),
        ({}, (2,), ["model.norm", "model.embed_tokens"], [], ["model.embed_tokens.weight"]),
        ({}, (0, 2), ["model.norm", "model.embed_tokens"], [], []),
        ({"tie_word_embeddings": False}, (2,), ["model.norm", "lm_head"], ["model.embed_tokens"], []),
        (
            {"tie_word_embeddings": False, "num_nextn_predict_layers": 1},
            (2,),
            ["model.mtp_block.0", "model.mtp_linear_proj", "model.embed_tokens"],
            [],
            ["model.embed_tokens.weight"],
        ),
        ({"num_nextn_predict_layers": 1}, (1,), [], ["model.mtp"], []),
    ],
)
def test_a_rank_holds_what_its_stages_need(
    changes: dict[str, Any], own: tuple[int, ...], has: list[str], has_not: list[str], copies: list[str]
) -> None:
    model = build(**changes)
    shared = shares_embedding(model, plan)
    assert shared == (changes.get("tie_word_embeddings", True) or "num_nextn_predict_layers" in changes)
    whole = {name: parameter.numpy() for name, parameter in model.named_parameters()}
    assert cut_model(model, plan, STAGES, own) == Cut(STAGES, shared, frozenset(copies))
    names = {name for name, _ in model.named_parameters()}
    assert all(any(name.startswith(part) for name in names) for part in has)
    assert not any(name.startswith(part) for name in names for part in has_not)
    blocks = {int(name.split(".")[2]) for name in names if name.startswith("model.layers.")}
    assert blocks == {block for stage in own for block in range(*STAGES[stage])}
    for name, parameter in model.named_parameters():
        np.testing.assert_array_equal(parameter.numpy(), whole[name])
    model.set_dropout(0.1, 0.1)  # reaches the placeholders too
    model.set_dropout(0.0, 0.0)


def test_a_cut_model_computes_its_stage() -> None:
    whole = build()
    stage = deepcopy(whole)
    cut_model(stage, plan, STAGES, (1,))
    received = paddle.ones([2, 7, 32])
    results = []
    for model in (whole, stage):
        view = StageView(model, plan, STAGES, 1)
        view.received = received
        results.append(view.model(*inputs()).numpy())
    np.testing.assert_array_equal(*results)


def test_what_is_cut_takes_no_memory() -> None:
    with paddle.LazyGuard():
        model = Ernie45(tiny_config(num_hidden_layers=4))
    gone = [name for name, _ in model.named_parameters() if name.startswith("model.layers.3")]
    parameters = dict(model.named_parameters())
    assert gone and not any(parameter._is_initialized() for parameter in parameters.values())
    cut_model(model, plan, STAGES, (0, 1))
    assert not set(gone).intersection(name for name, _ in model.named_parameters())
    # What stays may wait for its memory too: quantised weights take the place of some of it.
    assert not any(parameter._is_initialized() for parameter in parameters.values())
