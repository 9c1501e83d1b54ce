"""Section `model`: which model, in which precision, and which part of it is trained."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import REQUIRED, setting

_TRAIN = ("train",)
_WEIGHT_QUANTISATION = "training over quantised weights"


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model, in which precision, and which part of it is trained."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.checkpoint.sources:locate_model(model_name_or_path, download_hub)",
        "erniekit.assemble:build_model(continue_training, compute_type, fine_tuning, hidden_dropout_prob, "
        "attention_probs_dropout_prob, freeze)",
        "erniekit.train.objectives:build_objective(loss_subbatch_seqlen, use_sparse_head_and_loss_fn)",
        "erniekit.train.trainer:Trainer(dropout_warmup_steps)",
        "erniekit.data.tokenizer:choose_tokenizer(tokenizer)",
    )

    model_name_or_path: str = setting(
        REQUIRED,
        "a model folder, the output folder of a run, `starter`, or a hub id such as baidu/ERNIE-4.5-0.3B-Paddle",
    )
    download_hub: str = setting(
        "huggingface", "where a hub id is fetched from", choices=("huggingface", "aistudio", "modelscope")
    )
    tokenizer: str | None = setting(None, "folder of another tokenizer than the model's own")
    continue_training: bool = setting(
        True, "false starts from random weights instead of the model's", verbs=_TRAIN
    )
    compute_type: str = setting(
        "auto",
        "precision of the arithmetic; auto is bf16 on a GPU and fp32 on a CPU",
        choices=("auto", "fp32", "bf16"),
        not_built={
            "fp16": "fp16 training",
            "wint8": _WEIGHT_QUANTISATION + " (wint8)",
            "wint4": _WEIGHT_QUANTISATION + " (wint4)",
            "wint4/8": _WEIGHT_QUANTISATION + " (wint4/8)",
            "nf4": _WEIGHT_QUANTISATION + " (nf4)",
            "fp8": "FP8 training",
        },
    )
    fine_tuning: str = setting(
        "Full",
        "Full trains every parameter that `freeze` leaves",
        choices=("Full",),
        not_built={"LoRA": "LoRA"},
        verbs=("train", "eval", "chat", "generate", "export", "split"),
    )
    freeze: tuple[str, ...] = setting(
        (), "regular expressions; parameters whose name one of them finds are not trained", verbs=_TRAIN, form="regex"
    )
    hidden_dropout_prob: float = setting(
        0.0, "dropout of the residual branches", verbs=_TRAIN, at_least=0, below=1
    )
    attention_probs_dropout_prob: float = setting(
        0.0, "dropout of attention probabilities", verbs=_TRAIN, at_least=0, below=1
    )
    dropout_warmup_steps: int = setting(
        0, "steps over which both dropouts grow from 0 to their value", verbs=_TRAIN, at_least=0
    )
    loss_subbatch_seqlen: int = setting(
        32768, "positions whose logits are held at a time", verbs=("train", "eval"), at_least=1
    )
    use_sparse_head_and_loss_fn: bool = setting(
        True, "compute logits only where there is a token to learn", verbs=("train", "eval")
    )
