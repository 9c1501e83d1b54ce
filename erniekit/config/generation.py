"""Section `generation`: how answers are drawn. A value left out is the checkpoint's own."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.setting import setting

_VERBS = ("chat", "generate")


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How answers are drawn."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.generate.sampler:build_sampling",)

    max_new_tokens: int = setting(1024, "longest answer", verbs=_VERBS, at_least=1)
    min_tokens: int = setting(0, "shortest answer", verbs=_VERBS, at_least=0)
    temperature: float | None = setting(None, "0 always takes the likeliest token", verbs=_VERBS, at_least=0)
    top_p: float | None = setting(
        None, "draw from the likeliest tokens of this mass; 1 turns it off", verbs=_VERBS, above=0, at_most=1
    )
    top_k: int | None = setting(None, "draw from so many tokens; 0 turns it off", verbs=_VERBS, at_least=0)
    min_p: float | None = setting(
        None, "least likelihood relative to the likeliest; 0 turns it off", verbs=_VERBS, at_least=0, at_most=1
    )
    repetition_penalty: float | None = setting(
        None, "above 1 makes tokens that occurred less likely", verbs=_VERBS, above=0
    )
    frequency_penalty: float = setting(
        0.0, "subtracted for each time a token was written", verbs=_VERBS, at_least=-2, at_most=2
    )
    presence_penalty: float = setting(
        0.0, "subtracted once from tokens that were written", verbs=_VERBS, at_least=-2, at_most=2
    )
    stop: tuple[str, ...] = setting((), "texts that end an answer", verbs=_VERBS, form="texts")
    stream: bool = setting(True, "show an answer while it is written", verbs=_VERBS)
    enable_thinking: bool = setting(False, "let a thinking model think first", verbs=_VERBS)
    generation_seed: int | None = setting(
        None, "repeats an answer; drawn anew and told when left out", verbs=_VERBS, at_least=0
    )
