"""What a run tells while it trains: the live line, the logs on disk, and outside trackers.

Two files, because a resumed run has to reproduce one of them byte for byte and no run can
reproduce the other:

* `train_log.jsonl` holds what follows from the configuration alone: step, epoch, loss,
  learning rate, gradient norm, tokens, evaluations. A checkpoint remembers its length.
* `timing.jsonl` holds what the machine did: seconds, tokens per second, MFU, memory.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from rich.progress import Progress, TaskID, TextColumn
from rich.table import Column

from erniekit.errors import UnsupportedError
from erniekit.log import error_console, is_terminal, logger
from erniekit.train.preference_figures import evaluation_words, is_of_preferences, step_words

TRAIN_LOG = "train_log.jsonl"
TIMING_LOG = "timing.jsonl"


class Tracker(Protocol):
    """An outside service or file format that takes scalars."""

    def add(self, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


class _Scalars:
    """VisualDL and TensorBoard share this interface."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def add(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, run: Any) -> None:
        self._run = run

    def add(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()


def _open_visualdl(directory: str, run_name: str | None) -> Tracker:
    from visualdl import LogWriter

    return _Scalars(LogWriter(logdir=directory))


def _open_tensorboard(directory: str, run_name: str | None) -> Tracker:
    from tensorboardX import SummaryWriter

    return _Scalars(SummaryWriter(logdir=directory))


def _open_wandb(directory: str, run_name: str | None) -> Tracker:
    import wandb

    return _Wandb(wandb.init(dir=directory, name=run_name))


TRACKERS: dict[str, Callable[[str, str | None], Tracker]] = {
    "visualdl": _open_visualdl,
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
}


def open_trackers(names: Iterable[str], *, directory: str, run_name: str | None) -> list[Tracker]:
    """Open the trackers of `report_to`.

    Raises:
        UnsupportedError: the package of a tracker is not installed; names the extra.
    """
    trackers = []
    for name in names:
        if name == "none":
            continue
        try:
            trackers.append(TRACKERS[name](directory, run_name))
        except ModuleNotFoundError as error:
            raise UnsupportedError(
                f"report_to: {name} needs a package that is not installed ({error.name}): "
                f"pip install 'erniekit[{name}]', or write report_to: none"
            ) from error
    return trackers


def resident_memory() -> tuple[int, int]:
    """Bytes of memory that this process holds now, and held at most (Linux; zeros elsewhere)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0, 0
    values = {"VmRSS": 0, "VmHWM": 0}
    for line in status.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, rest = line.partition(":")
        if key in values:
            values[key] = int(rest.split()[0]) * 1024
    return values["VmRSS"], values["VmHWM"]


class Reporter:
    """Writes both logs, feeds the trackers, and keeps the live line."""

    def __init__(
        self,
        output_dir: Path,
        total_steps: int,
        flops_per_token: float,
        *,
        logging_steps: int,
        logging_first_step: bool,
        logging_dir: str | None,
        report_to: tuple[str, ...],
        run_name: str | None,
        disable_tqdm: bool,
    ) -> None:
        self.logging_steps = max(1, logging_steps)
        self.logging_first_step = logging_first_step
        self.peak_flops = 0.0
        self.best_tokens_per_second = 0.0
        self._total_steps = total_steps
        self._flops_per_token = flops_per_token
        self._log = open_log(output_dir / TRAIN_LOG)
        self._timing = open_log(output_dir / TIMING_LOG)
        directory = logging_dir or str(output_dir / "tracker")
        self._trackers = open_trackers(report_to, directory=directory, run_name=run_name)
        self._live = _live_line(total_steps) if is_terminal() and not disable_tqdm else None
        self._task = self._live.tasks[0].id if self._live else TaskID(0)
        self._started = self._window_started = time.perf_counter()
        self._window_tokens = 0
        self._first_step = 0

    def start(self, step: int, log_bytes: int) -> None:
        """Begin at `step`; whatever `train_log.jsonl` holds beyond `log_bytes` is of steps to be redone."""
        truncate_log(self._log, log_bytes)
        self._first_step = step
        self._started = self._window_started = time.perf_counter()
        if self._live:
            self._live.start()
            self._live.update(self._task, completed=step)

    def is_due(self, step: int) -> bool:
        """Whether the row of `step` is to be logged."""
        return (
            step % self.logging_steps == 0
            or step == self._total_steps
            or (step == 1 and self.logging_first_step)
        )

    def count(self, num_tokens: int) -> None:
        """Count tokens (padding not included) for the speed figures."""
        self._window_tokens += num_tokens

    def log_step(self, row: dict[str, Any], lines: Sequence[str] = ()) -> None:
        """Write the row of a step, and show it with the speed since the last row, and `lines` below it."""
        now = time.perf_counter()
        seconds = max(now - self._window_started, 1e-9)
        speed = self._window_tokens / seconds
        self.best_tokens_per_second = max(self.best_tokens_per_second, speed)
        memory, peak = resident_memory()
        step = row["step"]
        timing = {
            "step": step,
            "seconds": round(seconds, 4),
            "tokens_per_second": round(speed, 2),
            "mfu": round(speed * self._flops_per_token / self.peak_flops, 4) if self.peak_flops else None,
            "memory_bytes": memory,
            "peak_memory_bytes": peak,
        }
        write_row(self._log, row)
        write_row(self._timing, timing)
        self._track({**row, **timing}, step)
        self._window_started, self._window_tokens = now, 0
        self._show(step, row, timing)
        for line in lines:
            logger.info(line)

    def log_evaluation(self, row: dict[str, Any]) -> None:
        """Write the row of an evaluation; the time it took does not count as training."""
        write_row(self._log, row)
        self._track(row, row["step"])
        words = (
            evaluation_words(row)
            if is_of_preferences(row)
            else f"held-out loss {row['eval_loss']:.4f}, perplexity "
            f"{row['eval_perplexity']:.3f}, token accuracy {row['eval_accuracy']:.1%}"
        )
        logger.info(f"step {row['step']}: {words}")
        self._window_started = time.perf_counter()
        self._window_tokens = 0

    def log_bytes(self) -> int:
        """Length of `train_log.jsonl`, durable on disk."""
        self._log.flush()
        os.fsync(self._log.fileno())
        return self._log.tell()

    def close(self) -> None:
        """End the live line, the files and the trackers."""
        if self._live:
            self._live.stop()
        self._log.close()
        self._timing.close()
        for tracker in self._trackers:
            tracker.close()

    def _track(self, values: dict[str, Any], step: int) -> None:
        numbers = {
            _tracked_name(name): float(v)
            for name, v in values.items()
            if isinstance(v, int | float) and name != "step"
        }
        for tracker in self._trackers:
            tracker.add(numbers, step)

    def _show(self, step: int, row: dict[str, Any], timing: dict[str, Any]) -> None:
        mfu = f" | MFU {timing['mfu']:.1%}" if timing["mfu"] is not None else ""
        text = (
            f"loss {row['loss']:.4f} | {step_words(row) if is_of_preferences(row) else ''}"
            f"lr {row['learning_rate']:.2e} | grad {row['grad_norm']:.3f} | "
            f"{timing['tokens_per_second']:.0f} tok/s{mfu} | {timing['memory_bytes'] / 2**30:.1f} GiB"
        )
        done = max(step - self._first_step, 1)
        left = (time.perf_counter() - self._started) / done * (self._total_steps - step)
        line = f"step {step}/{self._total_steps} | ETA {_duration(left)} | {text}"
        if self._live:
            self._live.update(self._task, completed=step, line=line)
        else:
            logger.info(line)


class Quiet(Reporter):
    """A process that is not the first: it counts for nobody, and writes nothing."""

    def __init__(self, output_dir: Path, total_steps: int, flops_per_token: float, **keys: Any) -> None:
        self.logging_steps = max(1, keys["logging_steps"])
        self.logging_first_step = keys["logging_first_step"]
        self.peak_flops = self.best_tokens_per_second = 0.0
        self._total_steps = total_steps

    def start(self, step: int, log_bytes: int) -> None:
        """Nothing."""

    def count(self, num_tokens: int) -> None:
        """Nothing."""

    def log_step(self, row: dict[str, Any], lines: Sequence[str] = ()) -> None:
        """Nothing."""

    def log_evaluation(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def log_bytes(self) -> int:
        """What the first process says counts."""
        return 0

    def close(self) -> None:
        """Nothing."""


def _live_line(total_steps: int) -> Progress:
    """One line, cut at the right when the terminal is narrow; what matters most stands first."""
    column = TextColumn("{task.fields[line]}", table_column=Column(no_wrap=True, overflow="ellipsis"))
    progress = Progress(column, console=error_console)
    progress.add_task("train", total=total_steps, line=f"step 0/{total_steps}")
    return progress


def _tracked_name(name: str) -> str:
    """The name of a scalar as other trainers give it to trackers: train/loss, eval/loss."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def open_log(path: Path) -> IO[bytes]:
    """Open a JSON-lines file for appending; half a line left by a killed process is dropped."""
    file = path.open("r+b" if path.exists() else "w+b")
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
    return file


def write_row(file: IO[bytes], row: dict[str, Any]) -> None:
    """Append one JSON object and hand it to the system, so that a killed run loses no row."""
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()


def truncate_log(file: IO[bytes], length: int) -> None:
    """Drop everything beyond `length` bytes; a log that is shorter (of a run in a new folder) stays."""
    if length < file.seek(0, os.SEEK_END):
        file.truncate(length)
        file.seek(0, os.SEEK_END)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines log; a last line that a killed process left incomplete is dropped."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [json.loads(line) for line in lines[:-1] if line]
