"""The learning rate over the steps."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The learning rate over the steps."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.optim.schedules:build_schedule",)

    lr_scheduler_type: str = key(
        "linear",
        "shape after the warm-up",
        choices=("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "wsd"),
    )
    warmup_steps: int = key(0, "steps of the warm-up", minimum=0)
    warmup_ratio: float = key(
        0.0, "share of the steps that is warm-up, when warmup_steps is 0", minimum=0.0, maximum=1.0
    )
    decay_steps: int | None = key(
        None, "steps at which the decay ends; the whole run when not given", minimum=1
    )
    min_lr: float = key(0.0, "floor of the decay", minimum=0.0)
    lr_end: float = key(1e-7, "end of the polynomial decay", minimum=0.0)
    power: float = key(1.0, "power of the polynomial decay", above=0.0)
    num_cycles: float = key(0.5, "waves of the cosine; 0.5 falls once", above=0.0)
    decay_function: str = key("half_life", "decay of wsd", choices=("half_life", "1-sqrt"))
    wsd_steady_steps: int | None = key(
        None, "step at which the decay of wsd begins; 0.9 of all when not given", minimum=0
    )
