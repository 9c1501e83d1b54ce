"""The devices of `pipeline_parallel_degree`: which layers each has, and in which order they work."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key


@dataclass(frozen=True, kw_only=True)
class Pipelining:
    """How the model is cut into stages, and what runs when; of use with pipeline_parallel_degree above 1."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.estimate.plans:choose_pipelining",)

    virtual_pp_degree: int = key(1, "pieces of the model that each of those devices holds", minimum=1)
    pp_seg_method: str = key(
        "uniform",
        "cut of the layers: uniform, auto (balances time and memory), layer:REGEX (counts what it "
        "matches), or the first layers of the pieces and the number of layers",
        comma_list=True,
    )
    add_tail_layers: int = key(
        0, "empty layers that are counted after the last one, so that the last piece has fewer", minimum=0
    )
    pipeline_schedule: str = key(
        "auto",
        "order of forward and backward: 1f1b, interleaved (virtual_pp_degree pieces), zero_bubble (splits "
        "the backward), memory_capped (also bounds activations); auto is interleaved with several pieces, "
        "else 1f1b",
        choices=("auto", "1f1b", "interleaved", "zero_bubble", "memory_capped"),
    )
    pipeline_activation_cap: int = key(
        0,
        "activations, each of a micro-batch through one piece, that memory_capped holds at most; 0 is half "
        "as many as 1f1b",
        minimum=0,
    )
