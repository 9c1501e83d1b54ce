"""AdamW, clipping, and a learning rate that may grow with depth."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """AdamW, clipping, and a learning rate that may grow with depth."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.optim.build:build_optimizer",)

    optim: str = key(
        "adamw",
        "the optimizer; upstream's adamw_custom is the same AdamW",
        choices=("adamw",),
        synonyms={"adamw_custom": "adamw", "adamw_torch": "adamw", "adamw_hf": "adamw"},
        not_built={"muon": "the Muon optimizer"},
    )
    learning_rate: float = key(5e-5, "peak learning rate", minimum=0.0)
    weight_decay: float = key(0.0, "decoupled weight decay of matrices and embeddings", minimum=0.0)
    adam_beta1: float = key(0.9, "decay of the first moment", minimum=0.0, below=1.0)
    adam_beta2: float = key(0.999, "decay of the second moment", minimum=0.0, below=1.0)
    adam_epsilon: float = key(1e-8, "added to the root of the second moment", above=0.0)
    max_grad_norm: float = key(
        1.0, "global gradient norm is clipped to it; 0 turns clipping off", minimum=0.0
    )
    layerwise_lr_decay_bound: float = key(
        1.0, "share of the learning rate in the first layer, rising to 1 in the last", above=0.0, maximum=1.0
    )
    moe_gate_lr_ratio: float | None = key(
        None, "share of the learning rate that routers get; null gives them all of it", minimum=0.0
    )
    use_lowprecision_moment: bool = key(
        False, "moments are stored in bf16 (rounded at random, so that they keep their mean), not in fp32"
    )
    offload_optim: bool = key(
        False,
        "states are kept in main memory and are on the GPU one parameter at a time; on a CPU they are there "
        "anyway",
    )
