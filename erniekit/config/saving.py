"""Section `saving`: when checkpoints are written, and how many are kept."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)


@dataclass(frozen=True, kw_only=True)
class Saving:
    """When checkpoints are written, and how many are kept."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.saving:SavingPlan",)

    save_strategy: str = setting(
        "steps", "when to save; the last step always is", choices=("no", "steps", "epoch"), verbs=_TRAIN
    )
    save_steps: int = setting(500, "steps between checkpoints", verbs=_TRAIN, at_least=1)
    save_total_limit: int | None = setting(
        None, "keep so many of the newest, and the best; all when left out", verbs=_TRAIN, at_least=1
    )
    use_async_save: bool = setting(False, "write checkpoints while training goes on", verbs=_TRAIN)
