"""Section `optimizer`: how weights follow gradients."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How weights follow gradients."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.optim.build:build_optimizer",)

    optim: str = setting(
        "adamw",
        "optimiser; adamw_custom is another word for adamw",
        choices=("adamw", "adamw_custom"),
        not_built={"adafactor": "the Adafactor optimiser", "adamw_mini": "the Adam-mini optimiser"},
        verbs=_TRAIN,
    )
    learning_rate: float = setting(5e-5, "peak of the schedule", verbs=_TRAIN, above=0)
    weight_decay: float = setting(
        0.0, "decoupled decay; biases and norms are left out", verbs=_TRAIN, at_least=0
    )
    adam_beta1: float = setting(0.9, "decay of the mean of gradients", verbs=_TRAIN, at_least=0, below=1)
    adam_beta2: float = setting(0.999, "decay of the mean of squares", verbs=_TRAIN, at_least=0, below=1)
    adam_epsilon: float = setting(1e-8, "added to the root of the mean of squares", verbs=_TRAIN, above=0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm; 0 does not clip", verbs=_TRAIN, at_least=0)
    layerwise_lr_decay_bound: float = setting(
        1.0, "factor of the rate at the first layer, growing linearly to 1 at the last", verbs=_TRAIN, above=0, at_most=1
    )
