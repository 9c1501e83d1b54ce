"""A dense model as a mixture of experts that computes the same: every expert begins as the dense MLP.

The weights of a token's experts sum to 1, so whichever are chosen, their sum is what the MLP gave
(Komatsuzaki et al. 2022, "Sparse Upcycling"). Training then draws the experts apart, because each
sees tokens of its own. No Paddle is needed.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import numpy as np

from erniekit.checkpoint.files import Item
from erniekit.errors import CheckpointError, ConfigError
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.layouts import memory_shapes
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.weights import Weights

# Standard deviation of fresh router matrices; a token's normed state has length sqrt(hidden size).
_ROUTER_STD = 0.02
_EXPERTS, _GATE, _BIAS = ".mlp.experts.", ".mlp.gate.", ".mlp.moe_statics."

# (name, raw array, dtype word it has, dtype word it shall have) -> raw array
Convert = Callable[[str, np.ndarray, str, str], np.ndarray]


def upcycled_config(
    config: Ernie45Config, *, experts: int, top_k: int, start: int = 0, interval: int = 1
) -> Ernie45MoeConfig:
    """Numbers of the mixture of experts that a dense model becomes.

    Args:
        experts, top_k: of each layer, and of each token.
        start: the first layer with experts; from there those whose number (from 1) `interval` divides.

    Raises:
        CheckpointError: the model is no dense one without biases.
        ConfigError: the numbers do not fit it.
    """
    if isinstance(config, Ernie45MoeConfig):
        raise CheckpointError("this model has experts already; only a dense model can be upcycled")
    if config.use_bias:
        raise CheckpointError("this model has biases (use_bias: true), and experts have none")
    if experts < 2 or not 1 <= top_k <= experts:
        raise ConfigError(
            f"experts={experts},top_k={top_k}: write 2 experts or more, and a top_k from 1 to that number"
        )
    last = config.num_hidden_layers - 1
    if not 0 <= start <= last or interval < 1:
        raise ConfigError(
            f"start={start},interval={interval}: write a start from 0 to {last}, and an interval from 1 on"
        )
    if not any((layer + 1) % interval == 0 for layer in range(start, last + 1)):
        raise ConfigError(f"start={start},interval={interval}: of {last + 1} layers none would have experts")
    dense = {field.name: getattr(config, field.name) for field in fields(config)}
    return Ernie45MoeConfig(
        **dense,
        moe_num_experts=(experts,),
        moe_intermediate_size=(config.intermediate_size,),
        moe_k=top_k,
        moe_num_shared_experts=0,
        moe_layer_start_index=(start,),
        moe_layer_end_index=(-1,),
        moe_layer_interval=interval,
    )


def upcycled_dtypes(weights: Weights, config: Ernie45MoeConfig) -> dict[str, str]:
    """The dtype word of every parameter: that of the dense model's, and F32 for what routers hold."""
    return {
        name: "F32" if _is_router(name) else weights.dtype(_dense_name(name))
        for name in memory_shapes(config)
    }


def upcycled_items(
    weights: Weights, config: Ernie45MoeConfig, *, convert: Convert, noise: float = 0.0, seed: int = 0
) -> Iterator[Item]:
    """Every parameter (name, dtype word, raw bits) in memory layout, in the order of the model.

    Args:
        convert: between number formats, needed for noise in 16 bits.
        noise: standard deviation of what is added to each expert's matrices, as a share of theirs.
        seed: of the routers and of the noise; each parameter has a generator of its own.
    """
    for index, (name, shape) in enumerate(memory_shapes(config).items()):
        random = np.random.default_rng([seed, index])
        if _BIAS in name:
            yield name, "F32", np.zeros(shape, dtype=np.float32)
        elif _GATE in name:
            yield name, "F32", random.normal(0.0, _ROUTER_STD, shape).astype(np.float32)
        else:
            source = _dense_name(name)
            dtype, array = weights.dtype(source), weights.parameter(source)
            if _EXPERTS in name:
                array = _copies(name, array, dtype, shape[0], noise, random, convert)
            yield name, dtype, array


def _copies(
    name: str, array: np.ndarray, dtype: str, number: int, noise: float, random: Any, convert: Convert
) -> np.ndarray:
    copies = np.repeat(array[None], number, axis=0)
    if noise:
        plain = convert(name, array, dtype, "F32")
        spread = noise * float(plain.std())
        for expert in range(number):
            moved = plain + random.normal(0.0, spread, plain.shape).astype(np.float32)
            copies[expert] = convert(name, moved, "F32", dtype)
    return copies


def _is_router(name: str) -> bool:
    return _GATE in name or _BIAS in name


def _dense_name(name: str) -> str:
    """The parameter of the dense model that one of the mixture is taken from."""
    return name.replace(_EXPERTS, ".mlp.")
