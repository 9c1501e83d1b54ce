"""Adapters: a few trained numbers beside frozen weights."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key, regular_expressions


def _alpha(value: float) -> str | None:
    """Why a number is no alpha, or None."""
    return None if value == -1 or value > 0 else "write a number above 0, or -1 for twice the rank"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Size, scale, place and beginning of an adapter; for fine_tuning: LoRA, DoRA and PiSSA."""

    configures: ClassVar[tuple[str, ...]] = (
        "erniekit.adapters.lora:apply",
        "erniekit.checkpoint.sources:locate_adapters",
    )

    lora_rank: int = key(8, "rank of the factors; the adapter has so many columns a matrix", minimum=1)
    lora_alpha: float = key(
        -1.0, "the adapter is scaled by alpha / rank; -1 is twice the rank (4 with rslora)", check=_alpha
    )
    lora_dropout: float = key(0.0, "dropout on what the adapter sees, in training", minimum=0, below=1)
    rslora: bool = key(False, "scale by alpha / the root of the rank, which large ranks need")
    rslora_plus: bool = key(False, "rslora with lora_alpha 4 and lora_plus_scale 4")
    lora_plus_scale: float = key(1.0, "how much faster the factor B learns than A", above=0)
    lora_path: str | None = key(
        None,
        "adapter to start from, of ours, peft's or PaddleFormers' making; chat, generate, eval, export take "
        "it beside model_name_or_path, chat several (a,b)",
        comma_list=True,
    )
    lora_target: tuple[str, ...] = key(
        (),
        "matrices with an adapter: names (q_proj, mlp.down_proj), regular expressions, all-linear; experts, "
        "router, head, which nothing else includes; empty is attention and MLPs",
        check=regular_expressions,
    )
    lora_modules_to_save: tuple[str, ...] = key(
        (),
        "modules that are trained whole and saved with the adapter, such as embed_tokens and lm_head",
        check=regular_expressions,
    )
