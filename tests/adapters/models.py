"""Tiny models with adapters, for the tests of this folder."""

from typing import Any

import numpy as np
import paddle

from erniekit.adapters import lora
from erniekit.adapters.layers import LoraLinear
from erniekit.models.registry import load_family
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config

DEFAULTS: dict[str, Any] = {
    "lora_rank": 4,
    "lora_alpha": -1,
    "lora_dropout": 0.0,
    "rslora": False,
    "rslora_plus": False,
    "lora_plus_scale": 1.0,
    "lora_target": (),
    "lora_modules_to_save": (),
}


def build(config: Any, *, dtype: str = "fp32", seed: int = 0) -> Any:
    """A model with random weights."""
    paddle.seed(seed)
    model = load_family(config).build(config, dtype=dtype)
    model.initialise_weights()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            drawn = paddle.normal(0.0, 0.2, parameter.shape)
            parameter.set_value(drawn.astype(parameter.dtype))
    model.eval()
    return model


def dense(**changes: Any) -> Any:
    return build(tiny_config(**changes))


def moe(**changes: Any) -> Any:
    return build(tiny_moe_config(**changes))


def layout(model: Any) -> Any:
    family = load_family(model.config)
    return lambda name, shape: family.names_in_files(name, shape, model.config)


def apply(model: Any, linear: type[LoraLinear] = LoraLinear, **changes: Any) -> lora.Applied:
    """An adapter that has begun."""
    applied = lora.apply(model, layout(model), linear, **{**DEFAULTS, **changes})
    applied.initialise()
    return applied


def disturb(applied: lora.Applied, *, seed: int = 5) -> None:
    """As training would: no factor, length or whole saved parameter stays what it was."""
    paddle.seed(seed)
    for name, parameter in applied.model.named_parameters():
        if not parameter.stop_gradient:
            size = 0.05 if "magnitude" in name or ".lora_" not in name else 0.2
            noise = paddle.normal(0.0, size, parameter.shape).astype(parameter.dtype)
            parameter.set_value(
                (parameter.astype("float32") + noise.astype("float32")).astype(parameter.dtype)
            )


def logits(model: Any, *, grad: bool = False) -> Any:
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (2, 9))
    positions = np.tile(np.arange(9), (2, 1))
    with paddle.set_grad_enabled(grad):
        hidden = model(
            paddle.to_tensor(ids), paddle.to_tensor(positions), paddle.zeros([2, 9], dtype="int32")
        )
        found = model.logits(hidden.reshape([-1, hidden.shape[-1]]))
    return found if grad else found.numpy()


def near(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
