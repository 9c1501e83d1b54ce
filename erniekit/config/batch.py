"""Data of a step, and number of steps; `batch_size: n` sets both per-device sizes."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


def _steps(steps: int) -> str | None:
    """Why a number of steps is none."""
    return None if steps == -1 or steps >= 1 else "write -1 to let num_train_epochs decide, or at least 1"


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Data of a step, and number of steps; `batch_size: n` sets both per-device sizes."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.run:plan_steps",
        "erniekit.data.pack:BatchShape",
    )

    per_device_train_batch_size: int = key(1, "sequences of a micro-batch", minimum=1)
    per_device_eval_batch_size: int = key(1, "sequences of an evaluation batch", minimum=1)
    gradient_accumulation_steps: int = key(1, "micro-batches of a step", minimum=1)
    num_train_epochs: float = key(
        1.0, "passes over the training data; counts when max_steps is not given", above=0.0
    )
    max_steps: int = key(
        -1,
        "optimizer steps; -1 lets num_train_epochs decide",
        check=_steps,
        pattern_help="-1 or at least 1",
    )
