"""What every adapter promises, for each method and kind of model."""

import numpy as np
import paddle
import pytest

from erniekit.adapters import lora
from erniekit.adapters.dora import DoraLinear
from erniekit.adapters.layers import LoraLinear
from erniekit.adapters.pissa import PissaLinear
from erniekit.errors import ConfigError, UnsupportedError
from erniekit.ops import gradients
from tests.adapters import models

METHODS = [LoraLinear, DoraLinear, PissaLinear]
MODELS = {
    "dense": lambda: models.dense(),
    "bias": lambda: models.dense(use_bias=True),
    "untied": lambda: models.dense(tie_word_embeddings=False),
    "experts": lambda: models.moe(),
}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest):
    return MODELS[request.param]()


@pytest.mark.parametrize("method", METHODS)
def test_a_new_adapter_changes_nothing(model, method) -> None:
    before = models.logits(model)
    models.apply(model, method)
    models.near(models.logits(model), before)


@pytest.mark.parametrize("method", METHODS)
def test_merged_equals_unmerged(model, method) -> None:
    plain = models.logits(model)
    names = [name for name, _ in model.named_parameters()]
    applied = models.apply(model, method)
    models.disturb(applied)
    unmerged = models.logits(model)
    assert np.abs(unmerged - plain).max() > 1e-2 * np.abs(plain).max()
    changed = lora.merge(applied)
    models.near(models.logits(model), unmerged)
    assert [name for name, _ in model.named_parameters()] == names
    assert set(changed) <= set(names) and changed


@pytest.mark.parametrize("method", METHODS)
def test_only_the_adapter_gets_gradients(model, method) -> None:
    applied = models.apply(model, method)
    models.disturb(applied)
    model.train()
    models.logits(model, grad=True).square().mean().backward()
    with_gradient = {name for name, p in model.named_parameters() if gradients.of(p) is not None}
    assert with_gradient == set(applied.names())
    assert all(".lora_" in name for name in with_gradient)
    for name, parameter in model.named_parameters():
        if name in with_gradient:
            assert float(gradients.of(parameter).abs().max()) > 0.0, name


@pytest.mark.parametrize("method", METHODS)
def test_detached_and_off(model, method) -> None:
    plain = models.logits(model)
    applied = models.apply(model, method)
    models.disturb(applied)
    on = models.logits(model)
    with lora.adapters_off(model):
        models.near(models.logits(model), plain)
    np.testing.assert_array_equal(models.logits(model), on)
    lora.detach(applied)
    models.near(models.logits(model), plain)
    assert not [name for name, _ in model.named_parameters() if ".lora_" in name]


def test_experts_router_and_head_are_adapted_when_asked() -> None:
    for words in (["experts"], ["router"], ["all-linear", "experts", "router"]):
        model = models.moe()
        plain = models.logits(model)
        applied = models.apply(model, lora_target=words)
        models.near(models.logits(model), plain)
        models.disturb(applied)
        unmerged = models.logits(model)
        assert np.abs(unmerged - plain).max() > 1e-3
        lora.merge(applied)
        models.near(models.logits(model), unmerged)
    model = models.dense(tie_word_embeddings=False)
    applied = models.apply(model, lora_target=["head"])
    models.disturb(applied)
    unmerged = models.logits(model, grad=True)
    unmerged.sum().backward()
    assert gradients.of(model.lm_head.lora_A) is not None
    lora.merge(applied)
    models.near(models.logits(model), unmerged.numpy())


def test_experts_get_gradients() -> None:
    model = models.moe()
    applied = models.apply(model, lora_target=["experts", "router"])
    models.disturb(applied)
    model.train()
    models.logits(model, grad=True).square().mean().backward()
    assert {n for n, p in model.named_parameters() if gradients.of(p) is not None} == set(applied.names())


@pytest.mark.parametrize("method", METHODS)
def test_bf16(method) -> None:
    model = models.build(models.tiny_config(), dtype="bf16")
    applied = models.apply(model, method)
    models.disturb(applied)
    assert {str(p.dtype) for n, p in model.named_parameters() if n.endswith("lora_A")} == {"paddle.bfloat16"}
    unmerged = models.logits(model)
    lora.merge(applied)
    models.near(models.logits(model), unmerged, 0.1)


def test_bf16_experts() -> None:
    model = models.build(models.tiny_moe_config(), dtype="bf16")
    applied = models.apply(model, lora_target=["experts"])
    models.disturb(applied)
    models.logits(model, grad=True).square().mean().backward()
    assert {n for n, p in model.named_parameters() if gradients.of(p) is not None} == set(applied.names())


def test_dropout_acts_in_training_only() -> None:
    model = models.dense()
    applied = models.apply(model, lora_dropout=0.5)
    models.disturb(applied)
    still = models.logits(model)
    np.testing.assert_array_equal(models.logits(model), still)
    model.train()
    first, second = models.logits(model), models.logits(model)
    assert np.abs(first - second).max() > 0.0
    with lora.adapters_off(model):
        np.testing.assert_array_equal(models.logits(model), models.logits(model))


def test_modules_to_save_are_trained_whole() -> None:
    model = models.dense(tie_word_embeddings=False)
    applied = models.apply(model, lora_modules_to_save=["embed_tokens", "lm_head"])
    assert applied.saved == ("model.embed_tokens.weight", "lm_head.weight")
    assert {"model.embed_tokens.weight", "lm_head.weight"} < set(applied.names())
    with pytest.raises(ConfigError, match="embed_tokens.*norm|names end in"):
        models.apply(models.dense(), lora_modules_to_save=["wte"])
    with pytest.raises(ConfigError, match="not a regular expression"):
        models.apply(models.dense(), lora_modules_to_save=["(wte"])
    with pytest.raises(ConfigError, match="nothing is left to adapt"):
        models.apply(models.dense(), lora_target=["q_proj"], lora_modules_to_save=["qkv_proj"])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (16.0, False, 1.0)),
        ({"lora_alpha": 20}, (20.0, False, 1.0)),
        ({"rslora": True}, (4.0, True, 1.0)),
        ({"rslora": True, "lora_alpha": 128, "lora_plus_scale": 12}, (128.0, True, 12)),
        ({"rslora_plus": True, "lora_alpha": 99, "lora_plus_scale": 2}, (4.0, True, 4.0)),
    ],
)
def test_scaling(keys, expected) -> None:
    given = {"lora_rank": 8, "lora_alpha": -1, "rslora": False, "rslora_plus": False, "lora_plus_scale": 1.0}
    assert lora.resolve_scaling(**{**given, **keys}) == expected


def test_scale_of_the_layers() -> None:
    assert models.apply(models.dense(), lora_alpha=6).layers["model.layers.0.self_attn.o_proj"].scale == 1.5
    stable = models.apply(models.dense(), rslora=True).layers["model.layers.0.self_attn.o_proj"]
    assert stable.scale == 2.0


def test_lora_plus_is_a_rate_of_b() -> None:
    applied = models.apply(models.dense(), lora_plus_scale=12, lora_target=["o_proj"])
    assert applied.learning_rate_ratios() == {
        f"model.layers.{layer}.self_attn.o_proj.lora_B": 12 for layer in (0, 1)
    }
    assert models.apply(models.dense()).learning_rate_ratios() == {}


def test_words() -> None:
    applied = models.apply(models.dense(), rslora_plus=True, lora_target=["o_proj"], lora_rank=4)
    assert applied.words() == (
        "LoRA of rank 4, scale 2, rank-stabilised, B learns 4 times as fast, on o_proj (2 matrices); "
        "the rest is frozen"
    )


def test_counts() -> None:
    applied = models.apply(models.dense(), lora_target=["q_proj"], lora_rank=2)
    # hidden 32, query 4 x 16: two layers of (32 + 64) x 2.
    assert applied.num_parameters() == 2 * (32 + 64) * 2
    assert sum(p.size for p in applied.model.parameters() if not p.stop_gradient) == 2 * (32 + 64) * 2


def test_dora_is_refused_where_it_is_not_built() -> None:
    with pytest.raises(UnsupportedError, match="experts.*DoRA.*fine_tuning: LoRA"):
        models.apply(models.moe(), DoraLinear, lora_target=["experts"])


def test_the_model_trains_the_adapter_alone() -> None:
    """Plain gradient steps lower the loss, and no base weight moves."""
    model = models.dense()
    applied = models.apply(model)
    base = {name: p.numpy() for name, p in model.named_parameters() if ".lora_" not in name}
    losses = []
    for _ in range(5):
        loss = -paddle.nn.functional.log_softmax(models.logits(model, grad=True))[:, 5].mean()
        losses.append(float(loss))
        loss.backward()
        for name, parameter in model.named_parameters():
            if name in applied.names():
                parameter.set_value(parameter - 0.1 * gradients.of(parameter))
                gradients.clear(parameter)
    assert losses[-1] < 0.9 * losses[0]
    for name, parameter in model.named_parameters():
        if name in base:
            np.testing.assert_array_equal(parameter.numpy(), base[name])
    assert paddle.is_grad_enabled()
