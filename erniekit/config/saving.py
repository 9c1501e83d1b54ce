"""When checkpoints are written, and how many stay."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Saving:
    """When checkpoints are written, and how many stay."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.saving:SavingPlan",)

    save_strategy: str = key(
        "steps", "when to save; the last step is always saved", choices=("no", "steps", "epoch")
    )
    save_steps: int = key(500, "steps between checkpoints", minimum=1)
    save_total_limit: int | None = key(
        None, "checkpoints that stay; the best and the latest always do", minimum=1
    )
    use_async_save: bool = key(
        False, "write checkpoints in a thread while training goes on; costs a copy of the state"
    )
