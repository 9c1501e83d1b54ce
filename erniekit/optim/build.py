"""The table of optimisers, and the function that makes one from the keys of a configuration."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from erniekit.errors import UnsupportedError

# `adamw_custom` is upstream's AdamW whose extras (low-precision moments) are keys of their own.
OPTIMIZERS = {"adamw": "erniekit.optim.adamw:AdamW", "adamw_custom": "erniekit.optim.adamw:AdamW"}


def build_optimizer(
    named_parameters: list[tuple[str, Any]],
    own_ratios: Mapping[str, float] | None = None,
    held: Mapping[str, tuple[Any, int]] | None = None,
    of_model: Sequence[str] | None = None,
    *,
    optim: str,
    learning_rate: float,
    weight_decay: float,
    adam_beta1: float,
    adam_beta2: float,
    adam_epsilon: float,
    max_grad_norm: float,
    layerwise_lr_decay_bound: float,
    moe_gate_lr_ratio: float | None = None,
    use_lowprecision_moment: bool = False,
    offload_optim: bool = False,
) -> Any:
    """An optimiser of the trained ones among `named_parameters`.

    `learning_rate` is the peak of the schedule; the rate of each update is given to `step`.
    `own_ratios` says of parameters how much of it they get, beside what the other keys say. `held` has
    the tensors that this process updates in their place, where several share them: a range of each, and its
    first number; None for all. `of_model` are the names of
    the whole model's parameters, where others are elsewhere.

    Raises:
        UnsupportedError: `optim` is not built.
    """
    if optim not in OPTIMIZERS:
        raise UnsupportedError(f"optim: {optim} is not built yet; built: {', '.join(OPTIMIZERS)}")
    module, _, name = OPTIMIZERS[optim].partition(":")
    return getattr(import_module(module), name)(
        named_parameters,
        own_ratios or {},
        held,
        of_model,
        weight_decay=weight_decay,
        adam_beta1=adam_beta1,
        adam_beta2=adam_beta2,
        adam_epsilon=adam_epsilon,
        max_grad_norm=max_grad_norm,
        layerwise_lr_decay_bound=layerwise_lr_decay_bound,
        moe_gate_lr_ratio=moe_gate_lr_ratio,
        use_lowprecision_moment=use_lowprecision_moment,
        offload_optim=offload_optim,
    )
