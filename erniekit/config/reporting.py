"""What a run tells, and when it gives up."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """What a run tells, and when it gives up."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.reporting:Reporter",
        "erniekit.train.nonfinite:NonFinitePolicy",
    )
    logging_steps: int = key(1, "Steps between rows of the log.", minimum=1)
    logging_first_step: bool = key(False, "Log the first step too.")
    logging_dir: str | None = key(
        None, "Folder of the trackers; output_dir/tracker when not given.", path=True
    )
    report_to: tuple[str, ...] = key(
        (),
        "Trackers: visualdl, tensorboard, wandb; none.",
        choices=("none", "visualdl", "tensorboard", "wandb"),
    )
    run_name: str | None = key(None, "Name of the run in trackers.")
    disable_tqdm: bool = key(False, "Print plain lines instead of the live line.")
    on_nonfinite: str = key(
        "stop", "What to do when a loss or gradient is not finite.", choices=("stop", "skip")
    )
    max_skipped_steps: int = key(10, "Steps that `on_nonfinite: skip` may skip.", minimum=0)
