"""Dropout that rises over the first steps (DropoutWarmup: early updates are noisy enough)."""

from typing import Any


class DropoutWarmup:
    """Sets the dropout probabilities of a model for each step."""

    def __init__(self, model: Any, hidden: float, attention: float, *, dropout_warmup_steps: int) -> None:
        self._model, self._hidden, self._attention = model, hidden, attention
        self._steps = dropout_warmup_steps

    def begin_step(self, step: int) -> None:
        """Set what holds in step `step` (counted from 1): the share step / dropout_warmup_steps."""
        if self._steps:
            share = min(1.0, step / self._steps)
            self._model.set_dropout(self._hidden * share, self._attention * share)
