"""What tests of models over several processes share: weights, batches, the loss of a step, gradients.

Where a combination is compared with one process; a new one is a row of the table there:

| what | where |
|---|---|
| a step over data, tensor, sequence, context, experts; with adapters | `test_distribute.py` |
| every schedule of a pipeline, its gradients | `test_pipeline.py` |
| stages of sharding | `test_sharding.py`, `tests/train/test_sharded_runs.py` |
| runs over stages, with every other axis, recomputed or not | `tests/train/test_pipelining.py` |
| the command: adapters, quantised, context, pairs, random weights | `tests/train/test_shared_runs.py` |
| preference training | `tests/train/test_shared_preference.py` |
| bytes sent, every axis | `tests/train/test_measured.py` |
| processes that fail or hang | `test_faults.py` |
"""

from types import SimpleNamespace
from typing import Any

import numpy as np


def fill(model: Any, only: str = "") -> None:
    """Weights that depend on the name of the parameter only, of those with `only` in it."""
    for name, parameter in model.named_parameters():
        if only not in name:
            continue
        random = np.random.default_rng(list(name.encode()))
        scale, shift = (0.15, 0.0) if len(parameter.shape) >= 2 else (0.1, float("norm" in name))
        parameter.set_value(random.normal(shift, scale, parameter.shape).astype(np.float32))


def batches_of(step: int, count: int) -> list[Any]:
    """Packed rows of unequal length, with labels for some positions."""
    random = np.random.default_rng(step)
    found = []
    for index in range(count):
        lengths = random.integers(2, 7, 2 + index % 3)
        columns = int(lengths.sum())
        ids = random.integers(3, 64, (2, columns))
        labels = np.where(random.random((2, columns)) < 0.7, random.integers(3, 64, (2, columns)), -100)
        starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths).astype(np.int32)
        positions = np.concatenate([np.arange(length) for length in lengths])
        found.append(
            SimpleNamespace(
                input_ids=ids,
                labels=labels,
                position_ids=np.tile(positions, (2, 1)),
                attend_from=np.tile(starts, (2, 1)),
                token_types=None,
                is_token=lambda columns=columns: np.ones((2, columns), bool),
            )
        )
    return found


def step_loss_of(model: Any, kind: str) -> Any:
    from erniekit.train.objectives import build_objective
    from erniekit.train.routing import watch_routers
    from erniekit.train.step_loss import StepLoss

    experts = kind in ("experts", "two")
    companions = watch_routers(
        model,
        "SFT",
        moe_aux_loss_lambda=0.5 * experts,
        global_aux_loss=False,
        moe_z_loss_lambda=0.1 * experts,
        moe_orthogonal_loss_lambda=0.2 * experts,
        use_ortho_loss_callback=False,
        moe_use_aux_free=experts,
        moe_use_aux_free_update_coef=0.25,
    )
    objective = build_objective("SFT", loss_subbatch_seqlen=8, use_sparse_head_and_loss_fn=True)
    depths = model.config.num_nextn_predict_layers * experts
    return StepLoss(objective, companions, depths, multi_token_pred_lambda=0.3 * experts)


def adapt(model: Any, method: str, **changes: Any) -> Any:
    """Put an adapter on a model whose weights may not be there yet."""
    from importlib import import_module

    from erniekit.adapters import lora
    from erniekit.assemble import ADAPTERS
    from erniekit.models.registry import load_family

    module, _, name = str(ADAPTERS[method]).partition(":")
    family = load_family(model.config)
    settings: dict[str, Any] = {"lora_rank": 3, "lora_alpha": -1, "lora_dropout": 0.0, "rslora": False}
    settings |= {"rslora_plus": False, "lora_plus_scale": 1.0, "lora_target": (), "lora_modules_to_save": ()}
    return lora.apply(
        model,
        lambda parameter, shape: family.names_in_files(parameter, shape, model.config),
        getattr(import_module(module), name),
        **settings | changes,
    )


def gradients_of(model: Any) -> dict[str, np.ndarray]:
    from erniekit.ops import gradients

    found = {name: gradients.of(parameter) for name, parameter in model.named_parameters()}
    return {name: gradient.numpy().copy() for name, gradient in found.items() if gradient is not None}
