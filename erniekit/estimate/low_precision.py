"""What arithmetic in few bits adds to the memory of a step, or spares. No Paddle.

| switch of use_fp8 | bytes |
|---|---|
| fp8_swiglu_input | gate and up of a token: 1 + 4/128 a number in place of their width |
| fp8_dequant_input | what enters both matrices of an MLP, else made again: 1 + 4/128 a number |
| fp8_offline_quant_weight | 1 + 4/128^2 a number of the weights |

Training for a scheme under LoRA keeps the merged matrices from the forward to the backward pass.
"""

from dataclasses import dataclass
from typing import Any

from erniekit.estimate.recompute import layer_kinds, rows_of_experts

TILE = 128
# A byte, and the share of a scale.
BY_TILE, BY_BLOCK = 1 + 4 / TILE, 1 + 4 / TILE**2


@dataclass(frozen=True)
class Added:
    """Bytes that are there besides (negative: less).

    token: of each that waits for its backward pass. working: of each in the layer that is under way.
    always: whatever happens.
    """

    token: float = 0.0
    working: float = 0.0
    always: float = 0.0


NOTHING = Added()


def fp8_bytes(
    config: Any,
    *,
    width: int,
    fp8_dequant_input: bool,
    fp8_swiglu_input: bool,
    fp8_shared_expert: bool,
    fp8_offline_quant_weight: bool,
) -> Added:
    """What the switches of `use_fp8` do.

    Args:
        width: bytes of a number in storage.
    """
    token = working = numbers = 0.0
    for layer in layer_kinds(config):
        for rows, inner, matrices in _mlps(config, layer, shared=fp8_shared_expert):
            # The rounded gradient of gate and up, and those made of their bytes again.
            working = max(working, rows * 2 * inner * width * (2 if fp8_swiglu_input else 1))
            if fp8_swiglu_input:
                token += rows * 2 * inner * (BY_TILE - width)
            if fp8_dequant_input:
                token += rows * (config.hidden_size + inner) * BY_TILE
            numbers += matrices * 3 * inner * config.hidden_size
    return Added(token, working, numbers * BY_BLOCK if fp8_offline_quant_weight else 0.0)


def _mlps(config: Any, layer: int, *, shared: bool) -> list[tuple[float, int, int]]:
    """Rows a token, features inside, and matrices of the MLPs of a layer."""
    if not config.is_moe_layer(layer):
        return [(1, config.intermediate_size, 1)]
    counts = zip(config.moe_num_experts, config.moe_intermediate_size, strict=True)
    # A token is text or vision; text is reckoned with.
    found = [
        (rows_of_experts(config) if place == 0 else 0, inner, number)
        for place, (number, inner) in enumerate(counts)
    ]
    width = config.shared_intermediate_size()
    return [*found, (1, width, 1)] if shared and width else found
