"""Several devices: how many, and what each of them does."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


def _degree(degree: int) -> str | None:
    """Why a number of devices is none."""
    return None if degree >= -1 else "write at least 1; 0 and -1 mean 1"


def _shards(degree: int) -> str | None:
    return None if degree >= -1 else "write at least 1, or -1 for all that the other degrees leave"


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How training, with its evaluations, is spread over devices; what the degrees leave is data parallel."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.train.devices:require_devices",)

    nproc_per_node: int = key(
        0, "processes that are started on this machine; 0 is one per GPU, and one without GPUs", minimum=0
    )
    tensor_parallel_degree: int = key(
        1, "devices that share every matrix; 0 and -1 mean 1", check=_degree, pattern_help="at least -1"
    )
    sequence_parallel: bool = key(
        False,
        "those devices also share the positions of what lies between the matrices; nothing at one device",
    )
    context_parallel_degree: int = key(
        1,
        "devices that share the positions of every sequence, and in attention its heads; 0 and -1 mean 1",
        check=_degree,
        pattern_help="at least -1",
    )
    pipeline_parallel_degree: int = key(
        1, "devices that hold some of the layers each", check=_degree, pattern_help="at least -1"
    )
    sharding: str = key(
        "",
        "what devices with the same parameters share: stage1 states of the optimizer, stage2 also "
        "gradients, stage3 also parameters",
        choices=("", "stage1", "stage2", "stage3"),
        not_built={
            f"{stage} offload": "sharding with offload in one word (write offload_optim: true)"
            for stage in ("stage1", "stage2", "stage3")
        },
    )
    sharding_parallel_degree: int = key(
        -1,
        "devices that share so; -1 is all that the other degrees leave when `sharding` is given",
        check=_shards,
        pattern_help="at least -1",
    )
    moe_group: str = key(
        "dummy",
        "devices that experts are spread over: mp those of tensor_parallel_degree, dp those with other "
        "sequences, world all of a pipeline stage, dummy none",
        choices=("dummy", "mp", "dp", "world"),
        synonyms={"tp": "mp", "model": "mp", "data": "dp", "none": "world", "all": "world"},
    )
    expert_parallel_degree: int = key(
        1,
        "devices of moe_group that share the experts; 0 and -1 mean all of them",
        check=_degree,
        pattern_help="at least -1",
    )
