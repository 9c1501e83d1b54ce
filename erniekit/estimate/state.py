"""What a run holds from its first to its last step, exactly: weights, gradients, optimizer state."""

from dataclasses import dataclass
from typing import Any

BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, kw_only=True)
class Held:
    """What one of several processes holds, where it is not what the numbers of its part say.

    activations: bytes at the most, of all micro-batches that are under way.
    weights, gradients, states: of how many parameters they are here. head: whether the loss is.
    quantised: frozen weights are.
    """

    activations: float
    weights: float
    gradients: float
    states: float
    head: bool
    quantised: bool = False


def training_state(weights: int, num_trained: int, *, compute_type: str) -> dict[str, int]:
    """Bytes by cause on one device: fp32 gradients and moments, and fp32 copies of trained bf16 weights.

    Args:
        weights: bytes of the weights.
    """
    moments = 8 if compute_type == "fp32" else 12
    return {
        "weights": weights,
        "gradients": 4 * num_trained,
        "optimizer": moments * num_trained,
    }


def model_bytes(config: Any, *, compute_type: str, scheme: str | None = None) -> int:
    """Bytes of the weights, of which those that `scheme` names are quantised."""
    if scheme is None:
        return BYTES[compute_type] * config.num_parameters()
    from erniekit.models.registry import load_family
    from erniekit.quant.schemes import weight_bytes

    family = load_family(config)
    shapes = family.weights.memory_shapes(config)
    return weight_bytes(shapes, family.plan.ROLES, scheme, BYTES[compute_type])


def gigabytes(size: float) -> str:
    """Bytes in GB (10^9) for a sentence; small ones in MB."""
    if size >= 1e10:
        return f"{size / 1e9:,.0f} GB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
