"""The processes of a run on this machine: started, watched, and ended together.

The process that the user started stays as the parent of all ranks, and computes nothing. Rank 0 keeps the
terminal; what the others say goes to files. When a rank fails, the parent waits for the cause (a rank that
only lost another one ends with a code of its own), tells what that rank said, and ends the rest.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from erniekit.errors import ConfigError, PeerError
from erniekit.log import logger
from erniekit.train.signals import AGAIN_SECONDS

_POLL_SECONDS = 0.05
_CAUSE_SECONDS = 2.0  # in which the cause of a lost peer shows
_END_SECONDS = 4.0  # from SIGTERM to SIGKILL after a failure
_TOLD_LINES = 40
_WRONG_INPUT = 2


@dataclass
class Rank:
    """One process.

    Args:
        log: file for all that it says; None leaves it the terminal.
        code: its exit code, None while it runs.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    log: Path | None
    code: int | None = None


@dataclass
class Watch:
    """Ranks of this machine, until all have ended."""

    ranks: list[Rank] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)
    ended: list[Rank] = field(default_factory=list)
    since: float = 0.0  # of the last signal

    def run(self, command: Sequence[str], places: Mapping[int, tuple[Mapping[str, str], Path | None]]) -> int:
        """Start every rank and return the exit code of the run when all have ended.

        Args:
            places: rank -> its whole environment and the file for what it says.

        Returns:
            0; 2 when a rank found the input wrong; 1 when one failed; 128 + signal when interrupted.

        Raises:
            ConfigError: there is no place for what a rank says.
        """
        before = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for number, (environment, log) in places.items():
                self.ranks.append(_start(number, command, environment, log))
            if self.signals:  # some have not heard it; none has begun
                return 128 + self.signals[0]
            return self._wait()
        finally:
            self._end(0.0)
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _wait(self) -> int:
        while self._running():
            self._look()
            if len(self.signals) > 1:
                self._end(_END_SECONDS)
                return 128 + self.signals[0]
            if any(rank.code for rank in self.ended) and not self.signals:
                return self._fail()
            time.sleep(_POLL_SECONDS)
        codes = {rank.code for rank in self.ranks}
        if self.signals and codes <= {0, 128 + self.signals[0], -self.signals[0]}:
            return 128 + self.signals[0] if codes != {0} else 0
        return self._fail() if codes != {0} else 0

    def _fail(self) -> int:
        """Tell the rank that failed first, and end the others."""
        limit = time.monotonic() + _CAUSE_SECONDS
        while not self._is_clear() and self._running() and time.monotonic() < limit:
            self._look()
            time.sleep(_POLL_SECONDS)
        self._end(_END_SECONDS)
        causes = self._causes() or [rank for rank in self.ended if rank.code]
        first = causes[0]
        if first.code in (_WRONG_INPUT, PeerError.exit_code):  # which all find, and rank 0 has told
            first = next((rank for rank in causes if rank.number == 0), first)
        if first.code == _WRONG_INPUT and first.log is None:
            return _WRONG_INPUT  # told where the user looks, and nothing is to be added
        what = f"failed first ({_said(first.code)})"
        if first.code == PeerError.exit_code:
            what = "lost a process whose end was not seen on this machine"
        where = f"; all that it said is in {first.log}" if first.log else ""
        logger.error(f"rank {first.number} {what}{where}", extra={"all_ranks": True})
        if first.log:
            sys.stderr.write(_last_words(first.log))
        return _WRONG_INPUT if first.code == _WRONG_INPUT else 1

    def _is_clear(self) -> bool:
        """Whether the cause has shown; where the input is wrong, whether rank 0 has ended too."""
        causes = self._causes()
        teller = next((rank for rank in self.ranks if rank.log is None), None)
        return bool(causes) and (causes[0].code != _WRONG_INPUT or teller is None or teller.code is not None)

    def _causes(self) -> list[Rank]:
        return [rank for rank in self.ended if rank.code not in (0, PeerError.exit_code)]

    def _look(self) -> None:
        for rank in self.ranks:
            if rank.code is None and (code := rank.process.poll()) is not None:
                rank.code = code
                self.ended.append(rank)

    def _running(self) -> list[Rank]:
        return [rank for rank in self.ranks if rank.code is None]

    def _end(self, patience: float) -> None:
        """SIGTERM, and after `patience` seconds SIGKILL; returns when all have ended."""
        self._look()
        told = {rank.number: rank for rank in self._running()}
        for rank in told.values():
            rank.process.terminate() if patience else rank.process.kill()
        limit = time.monotonic() + patience
        while any(rank.process.poll() is None for rank in told.values()) and time.monotonic() < limit:
            time.sleep(_POLL_SECONDS)
        for rank in told.values():
            if rank.process.poll() is None:
                rank.process.kill()
            rank.code = rank.process.wait()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Every rank hears the signal: the first one lets it save and end, the second ends it at once."""
        if self.signals and time.monotonic() - self.since < AGAIN_SECONDS:
            return
        self.signals.append(number)
        self.since = time.monotonic()
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.send_signal(number)


def _start(number: int, command: Sequence[str], environment: Mapping[str, str], log: Path | None) -> Rank:
    if log is None:
        process = subprocess.Popen(command, env=dict(environment), start_new_session=True)
        return Rank(number, process, None)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("wb")
    except OSError as error:
        raise ConfigError(
            f"output_dir: {log.parent.parent} cannot be written ({error.strerror}); name another"
        ) from error
    with file:
        # In a session of its own, so that an interrupt of the terminal comes through the parent alone.
        process = subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Rank(number, process, log)


def _said(code: int | None) -> str:
    if code is not None and code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _last_words(log: Path) -> str:
    """The last traceback of a log and what follows it, or else its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    starts = [place for place, line in enumerate(lines) if line.startswith("Traceback (most recent")]
    return "\n".join(["", *lines[starts[-1] if starts else -_TOLD_LINES :]][: 5 * _TOLD_LINES]) + "\n"
