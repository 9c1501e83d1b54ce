"""Rules between the keys of `erniekit quantize`."""

from collections.abc import Iterator

from erniekit.config.config import Config
from erniekit.config.model import QUANTISED
from erniekit.config.quantize import COMPRESSED, WEIGHTS_ALONE

_OF_GPTQ = ("gptq_damping", "gptq_block_size", "gptq_act_order")


def quantize_rules(config: Config) -> Iterator[tuple[str, str]]:
    """The (key, message) of what does not go together in `erniekit quantize`."""
    chosen, numbers = config.quantize, config.model.compute_type
    if numbers in QUANTISED:
        yield (
            "compute_type",
            f"compute_type: {numbers} rounds weights while a model is used, and erniekit quantize rounds "
            "them for good, as quant_scheme says; write compute_type: auto",
        )
    if not config.train_data.train_dataset_path and _needs_calibration(config):
        yield (
            "train_dataset_path",
            "train_dataset_path: is missing: texts that calibrate; without them there are quant_method: "
            "trained and, for schemes of weights alone, rtn",
        )
    if config.run.stage == "DPO":
        yield "stage", "stage: DPO reads pairs of answers, which calibrate nothing; write stage: SFT or PT"
    if chosen.max_quality_drop is not None and not config.eval_data.eval_dataset_path:
        yield (
            "max_quality_drop",
            f"max_quality_drop: {chosen.max_quality_drop:g} needs held-out text; give eval_dataset_path",
        )
    if chosen.smooth_alpha is not None and chosen.quant_method == "awq":
        yield (
            "smooth_alpha",
            f"smooth_alpha: {chosen.smooth_alpha:g} and quant_method: awq both choose how inputs are "
            "scaled; write quant_method: rtn or gptq, or leave smooth_alpha out",
        )
    if chosen.quant_method == "trained":
        for key in ("smooth_alpha", "target_bits", "rotation_block_size"):
            if getattr(chosen, key) is not None:
                yield key, f"{key} chooses what quant_method: trained takes from the checkpoint; leave it out"
    elif chosen.target_bits is not None and chosen.quant_scheme not in WEIGHTS_ALONE:
        yield (
            "target_bits",
            f"target_bits mixes formats of weights alone, and quant_scheme: {chosen.quant_scheme} rounds "
            f"inputs or keys and values too; write one of {', '.join(WEIGHTS_ALONE)}",
        )
    yield from _compressed(config)


def without_effect_of_quantize(config: Config) -> Iterator[tuple[str, str]]:
    """The (key, reason) of keys that other values leave nothing to do, should they have been given."""
    method = config.quantize.quant_method
    if method == "trained":
        for key in ("quant_scheme", "clip_search", "num_calibration_tokens", "min_tokens_per_expert"):
            yield key, "of quant_method: trained, which takes scheme and scales from the checkpoint"
    if method != "gptq":
        for key in _OF_GPTQ:
            yield key, f"of quant_method: gptq, and quant_method is {method}"


def _needs_calibration(config: Config) -> bool:
    chosen = config.quantize
    if chosen.quant_method == "rtn" and chosen.quant_scheme in WEIGHTS_ALONE:
        return chosen.smooth_alpha is not None or chosen.target_bits is not None
    return chosen.quant_method != "trained"


def _compressed(config: Config) -> Iterator[tuple[str, str]]:
    chosen = config.quantize
    if chosen.quant_layout != "compressed-tensors":
        return
    if chosen.quant_scheme not in COMPRESSED:
        yield (
            "quant_layout",
            f"quant_layout: compressed-tensors has no form for quant_scheme: {chosen.quant_scheme}; write "
            f"one of {', '.join(COMPRESSED)}, or quant_layout: fastdeploy",
        )
    for key, given in (
        ("target_bits", chosen.target_bits),
        ("rotation_block_size", chosen.rotation_block_size),
    ):
        if given:
            yield key, f"{key}: {given:g} has no form in quant_layout: compressed-tensors; leave it out"
