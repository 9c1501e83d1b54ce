"""Section `run`: what a run does, where it writes, and on which device."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_TRAIN = ("train",)
_STAGES_TO_COME = {
    "DPO": "preference optimisation (DPO)",
    "VL-SFT": "vision-language fine-tuning (VL-SFT)",
    "OCR-VL-SFT": "vision-language fine-tuning (OCR-VL-SFT)",
}
_DEVICES_TO_COME = {
    name: f"training on {name} devices" for name in ("xpu", "npu", "iluvatar_gpu", "metax_gpu", "gcu", "mlu")
}


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run does, where it writes, and on which device."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.train.run:open_run(output_dir, overwrite_output_dir, resume_from_checkpoint)",
        "erniekit.train.run:choose_work(stage, do_train, do_eval)",
        "erniekit.assemble:set_device(device, seed)",
    )

    stage: str = setting(
        "SFT",
        "what is learnt: SFT (answers of conversations) or PT (all of a text)",
        choices=("SFT", "PT"),
        not_built=_STAGES_TO_COME,
        verbs=("train", "eval", "data"),
    )
    output_dir: str = setting(
        "./output", "folder of the run: checkpoints, logs, report, erniekit.yaml", required_for=_TRAIN
    )
    overwrite_output_dir: bool = setting(
        False, "delete the run that output_dir holds, and begin anew", verbs=("train", "export", "split")
    )
    resume_from_checkpoint: str = setting(
        "auto",
        "auto continues an interrupted run of the same configuration; none never does; or the path of a checkpoint",
        verbs=_TRAIN,
        form="resume",
    )
    do_train: bool = setting(True, "whether `train` trains; false leaves only the evaluation", verbs=_TRAIN)
    do_eval: bool = setting(
        False, "with do_train: false, what `train` does; evaluation_strategy says when a run evaluates", verbs=_TRAIN
    )
    seed: int = setting(
        42,
        "of the order of data, dropout and random initialisation",
        at_least=0,
        at_most=2**32 - 1,
    )
    device: str = setting(
        "auto",
        "auto (a GPU if there is one), cpu, gpu, or gpu:N",
        form="device",
        not_built=_DEVICES_TO_COME,
    )
