"""Arithmetic in fewer bits than those of the weights, while a model is trained."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class LowPrecision:
    """Training in FP8: the matrices of MLPs and experts, block by block, as ERNIE 4.5 was pre-trained."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.low_precision:apply_fp8",
        "erniekit.quant.fp8:train_in_fp8",
    )

    use_fp8: bool = key(
        False, "multiply MLPs and experts in FP8: tiles of 128 numbers, blocks of 128 x 128 of the weights"
    )
    fp8_format_type: str = key(
        "e4m3",
        "numbers of use_fp8: e4m3 for all; hybrid takes e5m2 (more range, less precision) for gradients",
        choices=("e4m3", "hybrid"),
    )
    fp8_dequant_input: bool = key(
        False,
        "keep the inputs of these matrices as bytes; the gradients of weights then see them rounded twice. "
        "Native kernels keep nothing of most inputs, but make them again",
    )
    fp8_swiglu_input: bool = key(
        False, "keep what goes into SwiGLU as bytes until its backward pass (half of what an MLP keeps)"
    )
    fp8_shared_expert: bool = key(False, "shared experts compute in FP8 too")
    fp8_dispatch: bool = key(
        False,
        "rows travel to experts of other processes as bytes; gradients of weights then see them rounded "
        "twice",
    )
    fp8_offline_quant_weight: bool = key(
        False, "keep the weights' bytes from one update to the next, in place of rounding them in every pass"
    )
    enable_fp8_quantize_analysis: bool = key(
        False, "log how far rounding moves inputs, weights and gradients of each layer (slow)"
    )
