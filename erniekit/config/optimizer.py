"""The optimiser."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimiser."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.optim.build:build_optimizer",)
    optim: str = key(
        "adamw", "The optimiser; adamw_custom is the same AdamW.", choices=("adamw", "adamw_custom")
    )
    learning_rate: float = key(5e-5, "Peak learning rate.", above=0.0)
    weight_decay: float = key(0.0, "Decoupled weight decay of matrices and embeddings.", minimum=0.0)
    adam_beta1: float = key(0.9, "Decay of the first moment.", minimum=0.0, maximum=0.9999)
    adam_beta2: float = key(0.999, "Decay of the second moment.", minimum=0.0, maximum=0.999999)
    adam_epsilon: float = key(1e-8, "Added to the root of the second moment.", above=0.0)
    max_grad_norm: float = key(
        1.0, "Global gradient norm is clipped to it; 0 turns clipping off.", minimum=0.0
    )
    layerwise_lr_decay_bound: float = key(
        1.0, "Share of the learning rate in the first layer, rising to 1 in the last.", above=0.0, maximum=1.0
    )
