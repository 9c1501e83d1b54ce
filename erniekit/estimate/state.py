"""What a run holds from its first to its last step, exactly: weights, gradients, optimizer state."""

BYTES = {"fp32": 4, "bf16": 2}


def training_state(num_parameters: int, num_trained: int, *, compute_type: str) -> dict[str, int]:
    """Bytes by cause on one device: fp32 gradients and moments, and fp32 copies of trained bf16 weights."""
    moments = 8 if compute_type == "fp32" else 12
    return {
        "weights": BYTES[compute_type] * num_parameters,
        "gradients": 4 * num_trained,
        "optimizer": moments * num_trained,
    }


def gigabytes(size: float) -> str:
    """Bytes in GB (10^9) for a sentence; small ones in MB."""
    if size >= 1e10:
        return f"{size / 1e9:,.0f} GB"
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
