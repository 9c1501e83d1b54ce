"""Every way to recompute gives the losses and gradients of none, bit by bit."""

from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.errors import ConfigError
from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from erniekit.ops.backend import use_kernels
from erniekit.ops.kernels.library import find_library
from erniekit.parallel.recomputation import Recomputation, choose_recomputation
from erniekit.parallel.recompute import apply_recompute
from erniekit.parallel.segment import recomputed
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

KEYS: dict[str, Any] = {
    "recompute": "true",
    "recompute_granularity": "full",
    "refined_recompute": None,
    "no_recompute_layers": None,
    "use_recompute_moe": False,
    "use_recompute_mtp": False,
    "use_recompute_loss_fn": False,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {},
    "full but one": {"no_recompute_layers": "1"},
    "full_attn": {"recompute_granularity": "full_attn"},
    "core_attn": {"recompute_granularity": "core_attn"},
    "selective": {"recompute_granularity": "selective"},
    "moe": {"recompute_granularity": "core_attn", "use_recompute_moe": True},
    "mtp": {"recompute": "false", "use_recompute_mtp": True},
    "loss": {"recompute": "false", "use_recompute_loss_fn": True},
    "all operators": {
        "recompute_granularity": "selective",
        "refined_recompute": ",".join(f"{name}:all" for name in plan.OPERATORS),
    },
    **{
        name: {"recompute_granularity": "selective", "refined_recompute": f"{name}:all"}
        for name in (*plan.OPERATORS, "head", "mtp")
    },
}
MODELS: dict[str, Any] = {
    "dense": tiny_config,
    "bias": lambda: tiny_config(use_bias=True, tie_word_embeddings=False),
    "experts": lambda: tiny_moe_config(
        num_nextn_predict_layers=1, moe_num_shared_experts=1, moe_layer_start_index=(1,)
    ),
    "two modalities": lambda: tiny_moe_config(2, num_nextn_predict_layers=1, moe_num_shared_experts=1),
}
WITH_EXPERTS = {"router", "dispatch", "shared_experts", "mtp", "all operators"}
CASES = [
    (model, setting)
    for model in MODELS
    for setting in SETTINGS
    if setting not in WITH_EXPERTS or model in ("experts", "two modalities")
]


def build(model: str, dtype: str) -> Ernie45:
    paddle.seed(5)
    built = Ernie45(MODELS[model](), dtype=dtype)
    built.initialise_weights()
    built.set_dropout(0.1, 0.1)
    built.train()
    return built


def loss_of(model: Any, chosen: Recomputation) -> paddle.Tensor:
    """Next tokens, tokens after these, and losses of the routers."""
    random = np.random.default_rng(0)
    config = model.config
    ids = paddle.to_tensor(random.integers(3, config.vocab_size, (2, 24)))
    positions = np.tile(np.concatenate([np.arange(9), np.arange(15)]), (2, 1))
    starts = np.tile(np.repeat([0, 9], [9, 15]), (2, 1)).astype(np.int32)
    labels = paddle.to_tensor(random.integers(3, config.vocab_size, 48))
    types = None
    if getattr(config, "num_modalities", 1) == 2:
        types = paddle.to_tensor((random.random((2, 24)) < 0.4).astype(np.int64))
    model.router_records = []
    hidden, ahead = model.predict_ahead(ids, paddle.to_tensor(positions), paddle.to_tensor(starts), types)
    lose = recomputed(chunked_cross_entropy) if chosen.head else chunked_cross_entropy
    total = paddle.zeros([])
    for states in (hidden, *ahead):
        rows = states.reshape([-1, states.shape[-1]])
        total = total + lose(rows, model.head(), labels, chunk_tokens=16)[0]
    for record in model.router_records:
        total = total + 0.1 * paddle.logsumexp(record.logits_NE, axis=-1).square().mean()
        total = total + record.probabilities_NE.mean(0).square().sum()
        total = total + 0.01 * (
            record.combine_weights_Nk.square().sum() + record.gate_weight_HE.square().sum()
        )
    return total


def trained(model: Any, chosen: Recomputation) -> dict[str, np.ndarray]:
    """Loss, gradients and the generator's next number after two micro-batches."""
    found = {}
    for step in range(2):
        paddle.seed(step)
        loss = loss_of(model, chosen)
        loss.backward()
        found[f"loss {step}"] = loss.numpy()
        found[f"drawn {step}"] = paddle.randn([2]).numpy()
    for name, parameter in model.named_parameters():
        gradient = gradients.of(parameter)
        if gradient is not None:
            found[name] = gradient.numpy()
    return found


def kernels() -> list[str]:
    return ["paddle"] + ["native"] * (find_library().library is not None)


@pytest.fixture(params=kernels())
def running(request, monkeypatch):
    monkeypatch.delenv("ERNIEKIT_KERNELS", raising=False)
    use_kernels(request.param)
    yield request.param
    use_kernels("auto")


def reference(model: str, dtype: str, running: str, known: dict[Any, Any] = {}) -> dict[str, np.ndarray]:  # noqa: B006
    key = model, dtype, running
    if key not in known:
        known[key] = trained(build(model, dtype), Recomputation(()))
    return known[key]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize(("model", "setting"), CASES)
def test_losses_and_gradients_are_those_of_none(model: str, dtype: str, setting: str, running: str) -> None:
    built = build(model, dtype)
    chosen = choose_recomputation(len(built.model.layers), **(KEYS | SETTINGS[setting]))
    touched = apply_recompute(built, plan, chosen)
    assert touched or chosen.head or (setting == "moe")
    expected = reference(model, dtype, running)
    found = trained(built, chosen)
    assert found.keys() == expected.keys() and len(found) > 15
    differing = [name for name in expected if found[name].tobytes() != expected[name].tobytes()]
    assert differing == []


def test_settings_cover_every_operator() -> None:
    assert len(SETTINGS) >= 20 and len(CASES) >= 70
    assert {*plan.OPERATORS, "head", "mtp"} <= set(SETTINGS)


@pytest.mark.parametrize("operator", ["router", "mtp"])
def test_an_operator_that_the_model_lacks_is_an_error(operator: str) -> None:
    keys = KEYS | {"recompute_granularity": "selective", "refined_recompute": f"{operator}:all"}
    model = build("dense", "fp32")
    with pytest.raises(ConfigError, match=f"{operator} is no part"):
        apply_recompute(model, plan, choose_recomputation(2, **keys))


def test_an_operator_may_be_in_another_stage_alone() -> None:
    keys = KEYS | {"recompute_granularity": "selective", "refined_recompute": "router:all"}
    apply_recompute(
        build("dense", "fp32"),
        plan,
        choose_recomputation(2, **keys),
        lambda touched: [*touched, "model.layers.7.mlp.choose_experts"],
    )


def test_parameters_train_below_frozen_ones(running: str) -> None:
    """With the embedding frozen no input of the first block needs a gradient; its weights do."""
    found = []
    for recompute in ("false", "true"):
        model = build("dense", "fp32")
        model.model.embed_tokens.weight.stop_gradient = True
        chosen = choose_recomputation(2, **(KEYS | {"recompute": recompute}))
        apply_recompute(model, plan, chosen)
        found.append(trained(model, chosen))
    assert "model.layers.0.mlp.down_proj.weight" in found[0] and "model.embed_tokens.weight" not in found[0]
    assert {name: value.tobytes() for name, value in found[0].items()} == {
        name: value.tobytes() for name, value in found[1].items()
    }


def test_evaluation_and_decoding_are_not_concerned() -> None:
    model, plain = build("dense", "fp32"), build("dense", "fp32")
    apply_recompute(model, plan, choose_recomputation(2, **KEYS))
    results = []
    for each in (model, plain):
        each.eval()
        with paddle.no_grad():
            ids, columns = paddle.to_tensor([[5, 6, 7]]), paddle.arange(3).unsqueeze(0)
            hidden = each(ids, columns, paddle.zeros([1, 3], dtype="int32"))
        assert hidden.stop_gradient
        results.append(hidden.numpy().tobytes())
    assert results[0] == results[1]
