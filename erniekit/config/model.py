"""The model: where it comes from and what is done to it before training."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key, regular_expressions

# Frozen weights in few bits, arithmetic as with auto: the rows of `quant/schemes.py` that round weights only.
QUANTISED = ("wint8", "wint4", "wint4_g64", "wint4_g32", "wint4/8", "nf4", "wint2", "wint2.5", "int2")


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint, its number type, its dropout, its frozen parts, its loss layer."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.checkpoint.sources:locate_model",
        "erniekit.assemble:build_model",
        "erniekit.train.objectives:build_objective",
        "erniekit.train.dropout:DropoutWarmup",
        "erniekit.data.reader:open_tokenizer",
    )

    model_name_or_path: str = key(
        "",
        "a local folder, `starter`, or a hub id such as baidu/ERNIE-4.5-0.3B-PT",
        required_by=("train", "eval", "export", "split", "chat", "generate", "data", "check", "quantize"),
    )
    download_hub: str = key(
        "huggingface",
        "where a hub id is downloaded from",
        choices=("huggingface", "aistudio", "modelscope"),
    )
    continue_training: bool = key(True, "start from the checkpoint's weights; false initialises them anew")
    compute_type: str = key(
        "auto",
        "number type of weights and activations; auto is bf16 on a GPU and on a CPU whose native kernels "
        "multiply it (avx512bf16), fp32 elsewhere; the others keep frozen weights in 8, 4 or 2 bits (with "
        "wint4/8 experts in 4 and the rest in 8) and compute as auto does; fp8 is upstream's word for "
        "qat_scheme: fp8_tensor with use_lowprecision_moment and offload_optim",
        choices=("auto", "fp32", "bf16", *QUANTISED),
        synonyms={"bfloat16": "bf16", "float32": "fp32"},
        not_built={"fp16": "training in fp16"},
    )
    fine_tuning: str = key(
        "Full",
        "which parameters are trained: all (except those of freeze), or an adapter beside frozen weights",
        choices=("Full", "LoRA", "DoRA", "PiSSA"),
    )
    hidden_dropout_prob: float = key(0.0, "dropout after attention and MLP", minimum=0, below=1)
    attention_probs_dropout_prob: float = key(0.0, "dropout on attention weights", minimum=0, below=1)
    dropout_warmup_steps: int = key(0, "steps over which dropout rises from 0 to its probability", minimum=0)
    freeze: tuple[str, ...] = key(
        (),
        "regular expressions; parameters whose name contains a match are not trained",
        check=regular_expressions,
    )
    num_nextn_predict_layers: int | None = key(
        None,
        "blocks of multi-token prediction, of a mixture of experts: more than the checkpoint has begin with "
        "fresh weights, fewer leave the last ones out of the run and of what it saves; null means as many as "
        "config.json says",
        minimum=0,
    )
    loss_subbatch_seqlen: int = key(1024, "positions whose logits are held at once in the loss", minimum=1)
    use_sparse_head_and_loss_fn: bool = key(True, "compute logits only where there is a label")
    tokenizer: str | None = key(None, "folder of another tokenizer; null means the model's")
