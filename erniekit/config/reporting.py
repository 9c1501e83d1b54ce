"""What a run tells while it works, and what it does about non-finite numbers."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """Logs, trackers, the progress line, and the answer to a non-finite loss or gradient."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.reporting:Reporter",
        "erniekit.train.nonfinite:NonFinitePolicy",
    )

    logging_steps: int = key(1, "steps between lines of the log", minimum=1)
    logging_first_step: bool = key(False, "also log the first step")
    logging_dir: str | None = key(None, "folder of the trackers' logs; null means output_dir/tracker")
    report_to: tuple[str, ...] = key(
        (), "trackers to write to, as a list", choices=("visualdl", "tensorboard", "wandb", "none")
    )
    run_name: str | None = key(None, "name of the run in trackers and in report.md")
    disable_tqdm: bool = key(False, "plain lines instead of the live progress line")
    on_nonfinite: str = key(
        "stop",
        "what a non-finite loss or gradient does: end the run, or skip the step",
        choices=("stop", "skip"),
    )
    max_skipped_steps: int = key(10, "steps that on_nonfinite: skip may skip", minimum=1)
