"""Section `schedule`: the learning rate over the steps."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the steps."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.optim.schedules:build_schedule",)

    lr_scheduler_type: str = setting(
        "linear",
        "shape of the schedule",
        choices=("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "wsd"),
        verbs=_TRAIN,
    )
    warmup_steps: int = setting(0, "steps of linear warm-up; above 0 it replaces warmup_ratio", verbs=_TRAIN, at_least=0)
    warmup_ratio: float = setting(0.0, "warm-up as a share of all steps", verbs=_TRAIN, at_least=0, below=1)
    decay_steps: int | None = setting(
        None, "step at which the decay ends; the last one when left out", verbs=_TRAIN, at_least=1
    )
    min_lr: float = setting(0.0, "the rate never decays below it", verbs=_TRAIN, at_least=0)
    lr_end: float = setting(1e-7, "last rate of the polynomial schedule", verbs=_TRAIN, at_least=0)
    power: float = setting(1.0, "exponent of the polynomial schedule", verbs=_TRAIN, above=0)
    num_cycles: float = setting(0.5, "waves of the cosine schedule", verbs=_TRAIN, above=0)
    decay_function: str = setting(
        "half_life", "decay of the wsd schedule", choices=("half_life", "1-sqrt"), verbs=_TRAIN
    )
    wsd_steady_steps: int | None = setting(
        None, "step at which the wsd schedule begins to decay; 0.9 of all when left out", verbs=_TRAIN, at_least=0
    )
