"""What happens when a loss or a gradient is not finite.

A NaN that goes unnoticed trains for hours on nothing. By default the run stops before the
optimizer touches a weight, names the rows of the batch, and leaves the last checkpoint as it
was. With `on_nonfinite: skip` the step is dropped, counted, and bounded.
"""

import math
from collections.abc import Sequence

from erniekit.errors import RunError
from erniekit.log import logger

_ROWS_SHOWN = 12


class NonFinitePolicy:
    """Decides over a step whose loss or gradient norm is inf or nan."""

    def __init__(self, *, on_nonfinite: str, max_skipped_steps: int) -> None:
        self.skip = on_nonfinite == "skip"
        self.limit = max_skipped_steps
        self.num_skipped = 0

    def accepts(
        self, *, step: int, loss: float, grad_norm: float, origins: Sequence[str], last_good: str
    ) -> bool:
        """True when all is finite; False when the step must be skipped.

        Raises:
            RunError: the policy is `stop`, or more than `max_skipped_steps` steps were skipped.
        """
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return True
        what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {grad_norm} (loss {loss:.4f})"
        rows = ", ".join(origins[:_ROWS_SHOWN]) + (
            f" and {len(origins) - _ROWS_SHOWN} more" if len(origins) > _ROWS_SHOWN else ""
        )
        self.num_skipped += 1
        if not self.skip:
            raise RunError(
                f"step {step}: {what}. The batch held these rows: {rows}. No weight was changed by it; "
                f"{last_good}. Look at these rows, lower learning_rate, or set on_nonfinite: skip."
            )
        if self.num_skipped > self.limit:
            raise RunError(
                f"step {step}: {what}, and {self.limit} steps were skipped before "
                f"(max_skipped_steps: {self.limit}). The batch held these rows: {rows}; {last_good}."
            )
        logger.warning(
            f"step {step}: {what}; skipped ({self.num_skipped} of at most {self.limit}). Rows: {rows}"
        )
        return False
