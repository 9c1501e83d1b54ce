"""What a run is: its stage, its folder, its seed, device and kernels."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run writes, how it continues, and which work it does."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.run:open_run",
        "erniekit.train.run:choose_work",
        "erniekit.assemble:set_device",
        "erniekit.train.processes:open_processes",
    )

    output_dir: str = key("./output", "folder of the run: checkpoints, logs, report")
    overwrite_output_dir: bool = key(False, "start anew even when output_dir holds a run (which is removed)")
    resume_from_checkpoint: str = key(
        "auto", "auto continues a run of the same configuration; none starts anew; or a checkpoint folder"
    )
    seed: int = key(42, "seed of order, dropout and initialisation", minimum=0, maximum=2**31 - 1)
    device: str = key(
        "auto",
        "the device; auto takes a GPU when there is one",
        pattern=r"auto|cpu|gpu(:\d+)?",
        pattern_help="auto, cpu, gpu or gpu:N",
    )
    kernels: str = key(
        "auto",
        "what computes on a CPU: native is compiled kernels, paddle Paddle's own operators (several times "
        "slower); auto is native where a library is built or a C++ compiler can build one, else paddle",
        choices=("auto", "native", "paddle"),
    )
    ddp_timeout: int = key(
        600,
        "seconds that a process of several waits for another before it names it and ends; a checkpoint has "
        "to be written within them, and read through by the first one when a run goes on",
        minimum=1,
    )
    stage: str = key(
        "SFT",
        "training objective: supervised fine-tuning, preference training or pre-training",
        choices=("SFT", "DPO", "PT"),
        not_built={
            "VL-SFT": "vision-language models",
            "OCR-VL-SFT": "vision-language models",
            "KTO": "unpaired preference training",
            "RM": "reward models",
        },
    )
    do_train: bool = key(True, "train; false only evaluates")
    do_eval: bool = key(False, "evaluate at the end, also with evaluation_strategy: no")
