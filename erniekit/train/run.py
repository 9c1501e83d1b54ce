"""A run's folder: what to do in it, and whether to begin anew, continue, or refuse.

The resolved configuration is written to `erniekit.yaml` before anything else. A second start in
the same folder continues when the configuration still says the same; when it does not, the
difference is printed and nothing is touched, because a run that silently goes on with another
learning rate or other data is worth less than no run.
"""

import json
import math
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.checkpoint.atomic import write_file_atomic
from erniekit.checkpoint.crew import Crew
from erniekit.checkpoint.store import Checkpoint, CheckpointStore
from erniekit.errors import CheckpointError, ConfigError, ErnieKitError
from erniekit.log import logger
from erniekit.train.reporting import TIMING_LOG, TRAIN_LOG

CONFIG_FILE = "erniekit.yaml"
PRODUCTS = (
    CONFIG_FILE,
    TRAIN_LOG,
    TIMING_LOG,
    "report.md",
    "margin.svg",
    "accuracy.svg",
    "loss.svg",
    "router.svg",
    "loss.png",
    "latest",
    "best",
)


@dataclass(frozen=True)
class Work:
    """What a `train` command was asked to do."""

    stage: str
    train: bool
    evaluate: bool


def choose_work(*, stage: str, do_train: bool, do_eval: bool) -> Work:
    """Training is what `train` is for; only an explicit `do_train: false` turns it off."""
    if not do_train and not do_eval:
        raise ConfigError("do_train: false and do_eval: false leave nothing to do; set one of them to true")
    return Work(stage, do_train, do_eval)


@dataclass(frozen=True)
class RunFolder:
    """An output folder that is ours to write to."""

    path: Path
    store: CheckpointStore
    start_from: Checkpoint | None


def open_run(
    resolved: str,
    settings: Mapping[str, Any],
    save_total_limit: int | None,
    crew: Crew | None = None,
    *,
    output_dir: str,
    overwrite_output_dir: bool,
    resume_from_checkpoint: str,
) -> RunFolder:
    """Make or reopen the output folder.

    Args:
        resolved: text of the resolved configuration, saved as `erniekit.yaml`.
        settings: the keys that decide the result, with their values as saved in `erniekit.yaml`.
        save_total_limit: how many checkpoints to keep.
        crew: the processes that call this together, where there are several; the first one does it.
        resume_from_checkpoint: `auto`, `none`, or the path of a checkpoint.

    Raises:
        ConfigError: the folder holds a run of another configuration, or one that must not be continued.
        CheckpointError: the folder cannot be written, or the named checkpoint is not good.
    """
    path = Path(output_dir)
    if crew is not None and not crew.is_first:
        error, start = crew.gather(None)[0]  # verified: once for all
        if error is not None:
            raise error
        return RunFolder(path, CheckpointStore(path, save_total_limit=save_total_limit, crew=crew), start)
    try:
        found = _open_folder(path, resolved, settings, overwrite_output_dir, resume_from_checkpoint)
    except ErnieKitError as error:
        if crew is not None:
            crew.gather((error, None))
        raise
    if crew is not None:
        crew.gather((None, found))
    return RunFolder(path, CheckpointStore(path, save_total_limit=save_total_limit, crew=crew), found)


def _open_folder(
    path: Path,
    resolved: str,
    settings: Mapping[str, Any],
    overwrite_output_dir: bool,
    resume_from_checkpoint: str,
) -> Checkpoint | None:
    """Make or reopen the folder; returns what to start from."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        _probe_writable(path)
    except OSError as error:
        raise CheckpointError(
            f"output_dir: {path} cannot be written ({error.strerror}); name another"
        ) from error
    previous = path / CONFIG_FILE
    occupied = previous.exists()
    if occupied and overwrite_output_dir:
        _clear(path)
        occupied = False
    store = CheckpointStore(path)
    store.clean()
    start_from = None
    if resume_from_checkpoint not in ("auto", "none"):
        start_from = store.open(Path(resume_from_checkpoint))
    elif occupied and resume_from_checkpoint == "none":
        raise ConfigError(
            f"output_dir: {path} holds a run, and resume_from_checkpoint: none asks to begin anew. "
            "Write overwrite_output_dir: true to delete that run, or name another output_dir."
        )
    elif occupied:
        differences = _differences(previous, settings)
        if differences:
            listing = "\n".join(f"  {line}" for line in differences)
            raise ConfigError(
                f"output_dir: {path} holds a run of another configuration:\n{listing}\n"
                "Name another output_dir, write overwrite_output_dir: true to delete that run, or "
                "resume_from_checkpoint: <path of a checkpoint> to continue it with the new values."
            )
        start_from = store.newest_good()
    write_file_atomic(previous, resolved.encode())
    if start_from is not None:
        logger.info(f"continuing from {start_from.path} (step {start_from.step})")
    return start_from


def require_same_rows(start: Checkpoint, rows: int, replicas: int, rows_of_each: int) -> None:
    """Refuse to go on with another number of sequences in a step, as other processes may bring about.

    Args:
        rows: sequences in a step now.
        replicas: processes that read other sequences. rows_of_each: sequences in a micro-batch.
    """
    saved = start.state()["loader"].get("rows_per_step", rows)
    if saved == rows:
        return
    micro_batches, rest = divmod(saved, rows_of_each * replicas)
    advice = "other numbers" if rest else f"gradient_accumulation_steps: {micro_batches}"
    raise ConfigError(
        f"{start.path} is of a run with {saved} sequences in a step, and now a step would have {rows}: "
        f"per_device_train_batch_size ({rows_of_each}) times gradient_accumulation_steps times {replicas} "
        f"processes that read other sequences. Write {advice} to go on, or resume_from_checkpoint: "
        f"{start.path} to go on with {rows}."
    )


def plan_steps(steps_per_epoch: int, *, num_train_epochs: float, max_steps: int) -> int:
    """Number of optimizer steps of the run: `max_steps` when positive, else what the epochs take."""
    return max_steps if max_steps > 0 else max(1, math.ceil(num_train_epochs * steps_per_epoch))


def _probe_writable(path: Path) -> None:
    probe = path / f".probe-{os.getpid()}"
    probe.touch()
    probe.unlink()


def _clear(path: Path) -> None:
    """Delete what a run wrote, and nothing else that may lie in the folder."""
    for name in PRODUCTS:
        (path / name).unlink(missing_ok=True)
    for folder in path.glob("checkpoint-*"):
        if folder.is_dir():
            shutil.rmtree(folder)


def _differences(previous: Path, settings: Mapping[str, Any]) -> list[str]:
    import yaml

    saved = yaml.safe_load(previous.read_text(encoding="utf-8")) or {}
    lines = []
    for key, value in settings.items():
        before = saved.get(key)
        if before != value:
            lines.append(f"{key}: {json.dumps(before)} before, {json.dumps(value)} now")
    return lines
