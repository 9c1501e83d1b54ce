"""What every model family has to keep; a family's test calls `check_model_contract`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from erniekit.checkpoint.files import write_tensors
from erniekit.nn.cache import KVCache

RELATIVE = 1e-5


def check_model_contract(build: Callable[[], Any], weights: Any, plan: Any, folder: Path) -> None:
    """Run every check; raises AssertionError.

    Args:
        build: makes the same small fp32 model with random weights each time.
        weights: the family's weights module; plan: its plan module.
        folder: an empty folder to write to.
    """
    check_cached_decoding(build())
    check_left_padding(build())
    check_packing(build())
    check_round_trip(build(), weights, folder)
    check_plan(build(), plan)
    check_parameter_count(build())


def check_cached_decoding(model: Any) -> None:
    """Decoding token by token over a cache gives the logits of one pass over everything."""
    config = model.config
    ids = _ids(config, 2, 11)
    full = _forward(model, ids)
    cache = KVCache(
        config.num_hidden_layers, 2, 11, config.num_key_value_heads, config.head_dim, model.cache_dtype
    )
    parts = []
    for start, stop in ((0, 4), (4, 5), (5, 6), (6, 11)):
        parts.append(_forward(model, ids[:, start:stop], first=start, cache=cache))
    _close(np.concatenate(parts, axis=1), full)
    assert cache.length == 11


def check_left_padding(model: Any) -> None:
    """Padding before a prompt does not change its logits."""
    ids = _ids(model.config, 1, 9)
    padded = np.concatenate([_ids(model.config, 1, 5, seed=8), ids], axis=1)
    columns = np.arange(14)
    starts = np.where(columns < 5, columns, 5)[None].astype(np.int32)
    positions = np.maximum(columns - 5, 0)[None]
    _close(_logits(model, padded, positions, starts)[:, 5:], _forward(model, ids))


def check_packing(model: Any) -> None:
    """A sample's logits are the same alone and between others in one row."""
    parts = [_ids(model.config, 1, length, seed=length) for length in (3, 1, 8, 5)]
    lengths = [part.shape[1] for part in parts]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)[None].astype(np.int32)
    positions = np.concatenate([np.arange(length) for length in lengths])[None]
    packed = _logits(model, np.concatenate(parts, axis=1), positions, starts)
    _close(packed, np.concatenate([_forward(model, part) for part in parts], axis=1))


def check_round_trip(model: Any, weights: Any, folder: Path) -> None:
    """Weights come back bit by bit through each layout on disk."""
    memory = [(name, "F32", parameter.numpy()) for name, parameter in model.named_parameters()]
    for layout in ("hf", "paddle"):
        place = folder / layout
        place.mkdir(parents=True)
        stored = weights.save_layout(iter(memory), layout, model.config)
        write_tensors(place, stored, max_shard_bytes=10**9, metadata={})
        back = list(weights.load_weights(place, model.config))
        assert [name for name, _, _ in back] == [name for name, _, _ in memory]
        for (name, _, array), (_, _, again) in zip(memory, back, strict=True):
            assert array.tobytes() == again.tobytes() and array.shape == again.shape, (layout, name)


def check_plan(model: Any, plan: Any) -> None:
    """Every matrix of the blocks is in the plan, and the plan names nothing else."""
    planned = set(plan.LINEARS)
    if hasattr(model.config, "num_modalities"):
        planned |= {name for name in plan.EXPERTS if "vision" not in name or model.config.num_modalities == 2}
        planned |= set(plan.SHARED_EXPERTS if model.config.moe_num_shared_experts else ())
        if all(map(model.config.is_moe_layer, range(model.config.num_hidden_layers))):
            planned -= {name for name in plan.LINEARS if name.startswith("mlp.")}
    matrices = {
        name.split(".", 3)[3].rsplit(".", 1)[0]
        for name, parameter in model.named_parameters()
        if name.startswith(plan.BLOCKS) and len(parameter.shape) >= 2 and not name.endswith(plan.ROUTERS)
    }
    assert matrices == planned


def check_parameter_count(model: Any) -> None:
    """The config's arithmetic agrees with the model."""
    assert model.config.num_parameters() == sum(parameter.size for parameter in model.parameters())


def _ids(config: Any, batch: int, length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, config.vocab_size, (batch, length))


def _forward(model: Any, ids: np.ndarray, *, first: int = 0, cache: Any = None) -> np.ndarray:
    batch, length = ids.shape
    positions = np.tile(np.arange(first, first + length), (batch, 1))
    return _logits(model, ids, positions, np.zeros((batch, length), np.int32), cache)


def _logits(
    model: Any, ids: np.ndarray, positions: np.ndarray, starts: np.ndarray, cache: Any = None
) -> np.ndarray:
    with paddle.no_grad():
        hidden = model(
            paddle.to_tensor(np.ascontiguousarray(ids)),
            paddle.to_tensor(positions),
            paddle.to_tensor(starts),
            cache=cache,
        )
        logits = model.logits(hidden.reshape([-1, hidden.shape[-1]]))
    return logits.numpy().reshape([*ids.shape, -1])


def _close(found: np.ndarray, expected: np.ndarray) -> None:
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    assert difference < RELATIVE, difference
