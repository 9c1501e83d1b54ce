"""Section `reporting`: what is told of a run, and what happens when its numbers are not finite."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)


@dataclass(frozen=True, kw_only=True)
class Reporting:
    """What is told of a run, and what happens when its numbers are not finite."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.reporting:Reporter",
        "erniekit.train.nonfinite:NonFinitePolicy",
    )

    logging_steps: int = setting(1, "steps between log rows", verbs=_TRAIN, at_least=1)
    logging_first_step: bool = setting(False, "log the first step in any case", verbs=_TRAIN)
    logging_dir: str | None = setting(
        None, "folder of the trackers; output_dir/tracker when left out", verbs=_TRAIN
    )
    report_to: tuple[str, ...] = setting(
        (), "trackers beside train_log.jsonl", choices=("visualdl", "tensorboard", "wandb"), verbs=_TRAIN, form="trackers"
    )
    run_name: str | None = setting(None, "name of the run in trackers and report", verbs=_TRAIN)
    disable_tqdm: bool = setting(False, "plain lines instead of the live progress line", verbs=_TRAIN)
    on_nonfinite: str = setting(
        "stop", "what a loss or gradient that is not finite does", choices=("stop", "skip"), verbs=_TRAIN
    )
    max_skipped_steps: int = setting(
        10, "with on_nonfinite: skip, stop after so many skipped steps", verbs=_TRAIN, at_least=0
    )
