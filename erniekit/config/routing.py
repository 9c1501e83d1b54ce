"""Mixtures of experts: what is asked of the routers, and how the load of experts is balanced."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Losses of routers, balance of experts, multi-token prediction; of no effect on models without them."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.routing:watch_routers",
        "erniekit.train.step_loss:StepLoss",
    )

    moe_aux_loss_lambda: float = key(1e-5, "weight of the load-balancing loss, summed over layers", minimum=0)
    global_aux_loss: bool = key(
        False,
        "that loss is of the tokens of all processes that read other sequences together; nothing at one",
    )
    moe_z_loss_lambda: float = key(0.0, "weight of the loss of large router logits", minimum=0)
    moe_orthogonal_loss_lambda: float = key(
        0.0, "weight of the orthogonal loss of the routers' matrices", minimum=0
    )
    use_ortho_loss_callback: bool = key(
        False, "the orthogonal loss acts after the optimizer's update (W -= weight * gradient), not in it"
    )
    moe_use_aux_free: bool | None = key(
        None,
        "balance experts by a bias on their choice, moved after every step; null means in PT and not in SFT",
    )
    moe_use_aux_free_update_coef: float = key(0.001, "how far that bias moves in a step", minimum=0)
    token_balance_loss: bool = key(
        False, "divide the loss by all positions, those that are not trained on too"
    )
    multi_token_pred_lambda: float = key(
        0.3, "weight of the loss of a model's multi-token prediction; 0 leaves its blocks out", minimum=0
    )
