"""Learning-rate schedules as pure functions of the step.

`build_schedule(...)(s)` is the rate of the update that follows s finished ones (s = 0, 1, ...).
With peak rate L, W warm-up steps, T steps in all, floor m = min_lr and p = (s - W) / (T - W):

    warm-up                L s / W while s < W, whatever the floor; the first update has rate 0
    linear                 m + (L - m) (1 - p)
    cosine                 m + (L - m) (1 + cos(2 pi c p)) / 2, c = num_cycles (0.5 is half a wave)
    polynomial             (L - e) (1 - p)^power + e, e = lr_end, at least m
    constant               L from the first step on
    constant_with_warmup   L after the warm-up
    wsd                    L while s < S, then with q = (s - S) / (T - S)
                           half_life: m + (L - m) (0.05^q - 0.05) / 0.95
                           1-sqrt:    m + (L - m) (1 - sqrt(q))

After T the rate stays what it is at T. `wsd` is warmup-stable-decay (Hu et al. 2024); S is
`wsd_steady_steps`, counted from the start, or 0.9 T, and at least W. A configuration gives the same
rates here as in PaddleFormers, and for the other schedules as in transformers, but for two things:
p stops at 1, and `min_lr` is a floor of every decay.
"""

import math
from collections.abc import Callable

from erniekit.errors import ConfigError
from erniekit.log import logger

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
        ConfigError: the schedule is not known, or its decay would end before the warm-up.
    """
    horizon = decay_steps or total_steps
    warmup = warmup_steps if warmup_steps > 0 else math.ceil(warmup_ratio * horizon)
    if lr_scheduler_type == "constant":
        return lambda step: base_lr
    if decay_steps is not None and warmup >= decay_steps:
        raise ConfigError(f"decay_steps: {decay_steps} is not above the {warmup} steps of the warm-up")
    if warmup >= horizon:
        _warn_of_warmup_only(base_lr, horizon, warmup, "warmup_steps" if warmup_steps > 0 else "warmup_ratio")
    steady = max(warmup, int(_STEADY_SHARE * horizon) if wsd_steady_steps is None else wsd_steady_steps)

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
        raise ConfigError(
            f"lr_scheduler_type: {lr_scheduler_type!r} is not one of constant, {', '.join(shapes)}"
        )
    shape = shapes[lr_scheduler_type]
    return lambda step: base_lr * step / warmup if step < warmup else shape(step)


def _warn_of_warmup_only(base_lr: float, horizon: int, warmup: int, key: str) -> None:
    """Known only once the data are counted, and on little data a short run is better than none."""
    highest = base_lr * (horizon - 1) / warmup
    logger.warning(
        f"{key}: the warm-up takes {warmup} steps and the run has {horizon}: the learning rate only rises, "
        f"to {highest:.3g} of {base_lr:g}"
    )
