"""Learning-rate schedules as pure functions of the step.

`build_schedule(...)(s)` is the rate of the update that follows s finished ones (s = 0, 1, ...).
With peak rate L, W warm-up steps, T steps in all, floor m = min_lr and p = (s - W) / (T - W):

    warm-up                L s' / W for s' = s + 1 <= W: the first update is not wasted on rate 0
    linear                 m + (L - m) (1 - p)
    cosine                 m + (L - m) (1 + cos(2 pi c p)) / 2, c = num_cycles (0.5 is half a wave)
    polynomial             (L - e) (1 - p)^power + e, e = lr_end, at least m
    constant               L from the first step on
    constant_with_warmup   L after the warm-up
    wsd                    L until the steady steps are over, then with q from 0 to 1 over the rest
                           half_life: m + (L - m) (0.05^q - 0.05) / 0.95
                           1-sqrt:    m + (L - m) (1 - sqrt(q))

`wsd` is warmup-stable-decay (Hu et al. 2024); its steady phase ends at 0.9 T unless given.
"""

import math
from collections.abc import Callable

from erniekit.errors import ConfigError

_HALF_LIFE_BASE = 0.05
_STEADY_SHARE = 0.9


def build_schedule(
    base_lr: float,
    total_steps: int,
    *,
    lr_scheduler_type: str,
    warmup_steps: int,
    warmup_ratio: float,
    decay_steps: int | None,
    min_lr: float,
    lr_end: float,
    power: float,
    num_cycles: float,
    decay_function: str,
    wsd_steady_steps: int | None,
) -> Callable[[int], float]:
    """The schedule, see the module docstring.

    Args:
        base_lr: the peak rate.
        total_steps: steps of the run; `decay_steps` replaces it as the horizon when given.
        warmup_steps: counts when above 0, else `warmup_ratio` of the horizon.

    Raises:
        ConfigError: the schedule is not known, or the warm-up leaves nothing of the horizon.
    """
    horizon = decay_steps or total_steps
    warmup = warmup_steps if warmup_steps > 0 else math.ceil(warmup_ratio * horizon)
    if lr_scheduler_type == "constant":
        return lambda step: base_lr
    if warmup >= horizon and lr_scheduler_type != "constant_with_warmup":
        key = "warmup_steps" if warmup_steps > 0 else "warmup_ratio"
        raise ConfigError(f"{key} takes {warmup} of {horizon} steps: nothing is left for {lr_scheduler_type}")
    steady = wsd_steady_steps if wsd_steady_steps is not None else int(_STEADY_SHARE * horizon)

    def share(step: int) -> float:
        """Position between the end of the warm-up and the horizon, 0 to 1."""
        return min(1.0, (step - warmup) / max(1, horizon - warmup))

    def mixed(part: float) -> float:
        return min_lr + (base_lr - min_lr) * part

    def wsd(step: int) -> float:
        if step < steady:
            return base_lr
        q = min(1.0, (step - steady) / max(1, horizon - steady))
        if decay_function == "1-sqrt":
            return mixed(1.0 - math.sqrt(q))
        return mixed((_HALF_LIFE_BASE**q - _HALF_LIFE_BASE) / (1.0 - _HALF_LIFE_BASE))

    shapes: dict[str, Callable[[int], float]] = {
        "linear": lambda step: mixed(1.0 - share(step)),
        "cosine": lambda step: mixed((1.0 + math.cos(2.0 * math.pi * num_cycles * share(step))) / 2.0),
        "polynomial": lambda step: max(min_lr, (base_lr - lr_end) * (1.0 - share(step)) ** power + lr_end),
        "constant_with_warmup": lambda step: base_lr,
        "wsd": wsd,
    }
    if lr_scheduler_type not in shapes:
        raise ConfigError(f"lr_scheduler_type: {lr_scheduler_type!r} is not one of constant, {', '.join(shapes)}")
    shape = shapes[lr_scheduler_type]
    return lambda step: base_lr * (step + 1) / warmup if step < warmup else shape(step)
