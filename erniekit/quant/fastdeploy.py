"""What config.json says of a quantised model, in FastDeploy's fields. No Paddle.

FastDeploy knows a format for dense layers, one for experts, and one for keys and values. What does not fit
into that (formats layer by layer, numbers it does not have) has no such fields, and is ErnieKit's alone.
"""

from collections.abc import Mapping
from typing import Any

# A row of FORMATS -> its word for dense layers, and for experts.
_DENSE = {"int8": "wint8", "int4": "wint4", "fp8_tensor": "tensor_wise_fp8", "fp8_block": "block_wise_fp8"}
_EXPERTS = {**_DENSE, "w4a8": "w4a8", "ccq2": "wint2"}


def fields_of(
    formats: Mapping[str, str], roles: Mapping[str, str], *, kv_cache: str | None, rotation: int
) -> dict[str, Any] | None:
    """The fields of `quantization_config`, or None where FastDeploy has none for such a model.

    Args:
        formats: parameter -> a row of FORMATS.
        roles: parameter -> its role.
        rotation: of fp8_tensor, the size of its Hadamard blocks.
    """
    dense = {format for name, format in formats.items() if roles[name] != "experts"}
    experts = {format for name, format in formats.items() if roles[name] == "experts"}
    if len(dense) > 1 or not dense <= set(_DENSE) or not experts <= set(_EXPERTS):
        return None
    # Its kernel for tensor-wise FP8 rotates inputs by blocks of 32, always.
    if ("fp8_tensor" in dense | experts) != (rotation == 32) or (rotation and "fp8_tensor" not in dense):
        return None
    of_dense = _DENSE[next(iter(dense))] if dense else "wint8"
    state: dict[str, Any] = {"is_quantized": True, "is_permuted": False}
    if "ccq2" in experts:
        return _convolutional(formats, roles, of_dense, kv_cache, state)
    if len(experts) > 1:
        return None
    of_experts = _EXPERTS[next(iter(experts))] if experts else of_dense
    if of_experts == of_dense and kv_cache is None and of_dense != "tensor_wise_fp8":
        block = {"weight_block_size": [128, 128]} if of_dense == "block_wise_fp8" else {}
        return {"quantization": of_dense, **block, **state}
    fields = {
        "quantization": "mix_quant",
        "dense_quant_type": of_dense,
        "moe_quant_type": of_experts,
        **state,
    }
    if kv_cache is not None:
        fields |= {"kv_cache_quant_type": kv_cache, "is_channel_wise": True}
    if rotation:
        fields["hadamard_block_size"] = rotation
    return fields


def _convolutional(
    formats: Mapping[str, str],
    roles: Mapping[str, str],
    of_dense: str,
    kv_cache: str | None,
    state: dict[str, Any],
) -> dict[str, Any] | None:
    """The fields of WINT2: experts of the first layers in int4, of the others in 2 bits."""
    by_layer: dict[int, set[str]] = {}
    for name, format in formats.items():
        if roles[name] == "experts":
            by_layer.setdefault(_layer(name), set()).add(format)
    kinds = [by_layer[layer] for layer in sorted(by_layer)]
    first = (
        next(layer for layer in sorted(by_layer) if by_layer[layer] == {"ccq2"}) if {"ccq2"} in kinds else -1
    )
    wanted = [{"ccq2"} if layer >= first else {"int4"} for layer in sorted(by_layer)]
    if first < 0 or kinds != wanted or of_dense != "wint8" or kv_cache is not None:
        return None
    four = {"quant_type": "wint4", "quant_granularity": "per_channel"}
    two = {"quant_type": "wint2", "quant_granularity": "pp_acc", "quant_group_size": 64}
    return {
        "quantization": "wint2",
        "dense_quant_type": of_dense,
        "moe_quant_type": "w4w2",
        "moe_quant_config": {
            "quant_type": "w4w2",
            "moe_w4_quant_config": {**four, "quant_start_layer": 0, "quant_end_layer": first - 1},
            "moe_w2_quant_config": {**two, "quant_start_layer": first, "quant_end_layer": max(by_layer)},
        },
        **state,
    }


def _layer(parameter: str) -> int:
    """The number in a parameter's name."""
    return int(next(word for word in parameter.split(".") if word.isdigit()))
