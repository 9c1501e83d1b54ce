"""Preference training (stage: DPO): which loss, against which reference."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Preference:
    """Loss of pairs of answers, and the reference model they are measured against."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.dpo:PreferenceSettings",)

    loss_type: str = key(
        "sigmoid",
        "loss of a pair (docs/dpo.md has the formulas); orpo is or with reference_free and sft_loss_ratio 1",
        choices=(
            *("sigmoid", "hinge", "ipo", "simpo", "dpop", "kto_pair"),
            *("sppo_hard", "nca_pair", "or", "orpo"),
        ),
    )
    beta: float = key(0.1, "how dear it is to leave the reference", above=0)
    label_smoothing: float = key(
        0.0, "share of pairs whose preference is wrong (sigmoid, simpo)", minimum=0, below=0.5
    )
    normalize_logps: bool = key(
        True,
        "scale both answers of a pair to their mean length, as upstream does; false is DPO as published "
        "and as TRL has it (no effect on losses that average: ipo, simpo, or)",
    )
    offset_alpha: float = key(
        0.0, "margin that grows with the difference of the answers' scores (sigmoid)", minimum=0
    )
    simpo_gamma: float = key(0.5, "margin of simpo", minimum=0)
    dpop_lambda: float = key(
        50.0, "weight of dpop's term for chosen answers that became less likely", minimum=0
    )
    pref_loss_ratio: float = key(1.0, "weight of the loss of pairs", minimum=0)
    sft_loss_ratio: float = key(0.0, "weight of the negative log-likelihood of chosen answers", minimum=0)
    reference_free: bool = key(False, "no reference model: every answer counts as equally likely before")
    ref_logps: str = key(
        "auto",
        "log-probabilities of the reference: precompute runs it once before training and keeps them on disk, "
        "model runs it in every step (with an adapter the model without it, else a second copy in memory); "
        "auto is model with an adapter or ref_model_update_steps, else precompute",
        choices=("auto", "precompute", "model"),
    )
    ref_model_update_steps: int = key(
        -1, "steps after which the reference becomes the present model; -1 never", minimum=-1
    )
