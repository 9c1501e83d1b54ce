"""Training that knows the numbers a model will be kept in."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key

# The rows of `quant/schemes.py` that training emulates.
TRAINED = (
    *("wint8", "wint4", "wint4_g64", "wint4_g32", "wint4/8", "nf4", "w8a8", "w4a8"),
    *("fp8_tensor", "fp8_block", "int2"),
)


@dataclass(frozen=True, kw_only=True)
class Qat:
    """Quantisation-aware training: products over the numbers that a scheme keeps, gradients past rounding."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.low_precision:apply_qat",
        "erniekit.quant.qat:train_for",
    )

    qat_scheme: str | None = key(
        None,
        "train for this scheme of erniekit quantize (docs/quantisation.md): weights, and inputs where it "
        "rounds them, are rounded in every product; null trains for the model in full",
        choices=TRAINED,
        not_built=dict.fromkeys(
            ("wint2", "wint2.5"), "training for 2-bit codes, which take a search that every step would repeat"
        ),
    )
    qat_delay_steps: int = key(0, "steps before rounding begins", minimum=0)
    qat_rest_share: float = key(
        0.1, "share of the steps, at the end, in which the scales of inputs rest", minimum=0, below=1
    )
    qat_learn_scales: bool = key(
        False, "learn the scales of weights (LSQ) in place of those by which the largest number is exact"
    )
    apply_hadamard: bool = key(True, "fp8_tensor: mix features by Hadamard matrices before rounding")
    hadamard_block_size: int = key(
        32,
        "features that are mixed with each other, a power of two",
        minimum=1,
        maximum=4096,
        check=lambda size: None if size & (size - 1) == 0 else "write a power of two",
    )
    apply_online_actscale_step: int = key(
        200,
        "steps of rounding in which inputs are rounded by a scale of their own, whose mean is kept",
        minimum=0,
    )
    actscale_moving_rate: float = key(
        0.01, "share by which the kept scale of inputs follows that of a step afterwards", above=0, maximum=1
    )
    quant_input_grad: bool = key(False, "round gradients to FP8 (e5m2) for the gradients of inputs")
    quant_weight_grad: bool = key(
        False,
        "round gradients to FP8 (e5m2), and inputs as in the forward pass, for the gradients of weights",
    )
