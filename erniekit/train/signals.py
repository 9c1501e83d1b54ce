"""Interruptions: the first signal lets the step end and saves; the second one ends at once."""

import signal
from types import FrameType, TracebackType

from erniekit.log import logger


def exit_code_of(number: int) -> int:
    """128 + number of the signal: 130 for SIGINT, 143 for SIGTERM."""
    return 128 + number


class StopOnSignal:
    """A context in which SIGINT and SIGTERM set `.received` instead of ending the process."""

    def __init__(self) -> None:
        self.received: int | None = None
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
            raise KeyboardInterrupt
        self.received = number
        logger.warning("stopping after this step and saving; once more to stop at once without saving")
