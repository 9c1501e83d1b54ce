"""How `erniekit quantize` turns a model into one of few bits."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key

# The rows of `quant/schemes.py` that quantise something.
SCHEME_WORDS = (
    *("wint8", "wint4", "wint4_g64", "wint4_g32", "wint4/8", "nf4", "w8a8", "w4a8", "w4a8c8"),
    *("fp8_tensor", "fp8_block", "wint2", "wint2.5", "int2"),
)
# Those that leave inputs, keys and values as they are, and those that compressed-tensors has a form for.
WEIGHTS_ALONE = ("wint8", "wint4", "wint4_g64", "wint4_g32", "wint4/8", "nf4", "wint2", "wint2.5", "int2")
COMPRESSED = ("wint8", "wint4", "wint4_g64", "wint4_g32", "wint4/8", "w8a8", "fp8_block")


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Scheme, method, calibration and limits of `erniekit quantize`."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.export.quantise_block:Method",)

    quant_scheme: str = key(
        "wint4_g64", "the scheme: which numbers for which part (docs/quantisation.md)", choices=SCHEME_WORDS
    )
    quant_method: str = key(
        "gptq",
        "how numbers are rounded: to nearest (rtn), to nearest with inputs scaled for it (awq), or one "
        "after the other so that later ones make up for the errors of earlier ones (gptq); trained takes "
        "scheme and scales of inputs from a checkpoint of qat_scheme, and needs no data",
        choices=("rtn", "awq", "gptq", "trained"),
    )
    clip_search: bool = key(True, "look for scales that cut the largest numbers, where that lowers the error")
    smooth_alpha: float | None = key(
        None,
        "move size from inputs to weights before rounding (SmoothQuant): 0.5 takes as much from the one as "
        "from the other; null does not",
        minimum=0,
        maximum=1,
    )
    rotation_block_size: int | None = key(
        None,
        "features that a Hadamard matrix mixes before rounding, a power of two; 0 for none; null is the "
        "scheme's",
        minimum=0,
        maximum=4096,
        check=lambda size: None if size & (size - 1) == 0 else "write a power of two, or 0",
    )
    gptq_damping: float = key(0.01, "gptq: added to the diagonal, as a share of its mean", above=0, maximum=1)
    gptq_block_size: int = key(128, "gptq: inputs whose errors are made up for at once", minimum=1)
    gptq_act_order: bool = key(True, "gptq: begin with the largest inputs")
    num_calibration_tokens: int = key(16384, "tokens of train_dataset_path that calibrate", minimum=1)
    min_tokens_per_expert: int = key(
        64,
        "tokens that calibrate an expert at least: those that its router scores highest are added",
        minimum=0,
    )
    target_bits: float | None = key(
        None,
        "bits of a weight on average: matrices that lose the least are rounded to fewer (2, 4 or 8 bits "
        "each); null rounds all as quant_scheme says",
        above=2,
        maximum=8.5,
    )
    max_quality_drop: float | None = key(
        None,
        "fail when perplexity on eval_dataset_path rises by more than this share (0.02 is 2 %); null only "
        "tells",
        above=0,
    )
    quant_layout: str = key(
        "fastdeploy",
        "files: FastDeploy's names (which ErnieKit reads too), or compressed-tensors for transformers and "
        "vLLM",
        choices=("fastdeploy", "compressed-tensors"),
    )
    quant_dir: str | None = key(None, "folder of the quantised model; null means output_dir/quantized")
