"""Interruptions: the first signal lets the step end and saves; the second one ends at once.

Who ends a whole group of processes (`timeout`, Slurm) sends one signal several times: to a process and to its
group, or to a rank and to its parent, which passes it on. What comes so soon is the first one still.
"""

import signal
import time
from types import FrameType, TracebackType

from erniekit.log import logger

AGAIN_SECONDS = 1.0  # after which a signal is the second one


def exit_code_of(number: int) -> int:
    """128 + number of the signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


class StopOnSignal:
    """A context in which SIGINT and SIGTERM set `.received` instead of ending the process."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._since = 0.0
        self._previous: dict[int, signal.Handlers | object] = {}

    def __enter__(self) -> "StopOnSignal":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._since < AGAIN_SECONDS:
                return
            raise KeyboardInterrupt
        self.received, self._since = number, time.monotonic()
        logger.warning("stopping after this step and saving; once more to stop at once without saving")
