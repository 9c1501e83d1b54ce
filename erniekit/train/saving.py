"""The plan of when to write a checkpoint."""


class SavingPlan:
    """When to save; the last step is always saved, whatever the strategy."""

    def __init__(
        self, *, save_strategy: str, save_steps: int, save_total_limit: int | None, use_async_save: bool
    ) -> None:
        self.strategy = save_strategy
        self.save_steps = save_steps
        self.limit = save_total_limit
        self.asynchronous = use_async_save

    def is_due(self, step: int, *, steps_per_epoch: int, last: bool) -> bool:
        """Whether to save after `step` optimizer steps."""
        if last:
            return True
        if self.strategy == "no":
            return False
        return step % max(1, steps_per_epoch if self.strategy == "epoch" else self.save_steps) == 0
