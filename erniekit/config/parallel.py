"""Several devices: how many, and what each of them does."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


def _degree(degree: int) -> str | None:
    """Why a number of devices is none."""
    return None if degree >= -1 else "write at least 1; 0 and -1 mean 1"


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How training and evaluation are spread over devices; their number is the product of the degrees."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.devices:require_devices",)

    tensor_parallel_degree: int = key(
        1, "devices that share every matrix; 0 and -1 mean 1", check=_degree, pattern_help="at least -1"
    )
    pipeline_parallel_degree: int = key(
        1, "devices that hold some of the layers each", check=_degree, pattern_help="at least -1"
    )
    sharding_parallel_degree: int = key(
        1, "devices that share gradients and optimizer state", check=_degree, pattern_help="at least -1"
    )
