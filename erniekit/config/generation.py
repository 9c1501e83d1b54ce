"""How text is generated."""

from dataclasses import dataclass
from typing import ClassVar

from erniekit.config.fields import key

FROM_CHECKPOINT = "null means the checkpoint's generation_config.json"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Length, sampling, penalties and stop texts of `generate` and `chat`."""

    configures: ClassVar[tuple[str, ...]] = ("erniekit.generate.sampler:build_sampling",)

    max_new_tokens: int = key(1024, "tokens of an answer at most", minimum=1)
    min_tokens: int = key(0, "tokens of an answer at least", minimum=0)
    temperature: float | None = key(None, f"0 is greedy; {FROM_CHECKPOINT}", minimum=0)
    top_p: float | None = key(None, f"probability mass to sample from; {FROM_CHECKPOINT}", above=0, maximum=1)
    top_k: int | None = key(None, f"tokens to sample from, 0 for all; {FROM_CHECKPOINT}", minimum=0)
    min_p: float | None = key(
        None, f"least probability relative to the best token; {FROM_CHECKPOINT}", minimum=0, maximum=1
    )
    repetition_penalty: float | None = key(
        None, f"above 1 makes tokens seen before less likely; {FROM_CHECKPOINT}", above=0
    )
    frequency_penalty: float = key(
        0.0, "subtracted for each time a token was generated", minimum=-2, maximum=2
    )
    presence_penalty: float = key(0.0, "subtracted once for a generated token", minimum=-2, maximum=2)
    stop: tuple[str, ...] = key((), "texts that end an answer, as a list")
    stream: bool = key(True, "show an answer while it is generated")
    enable_thinking: bool = key(False, "let a template that knows it open a thinking part")
    generation_seed: int | None = key(
        None, "seed of sampling; null takes a new one each time", minimum=0, maximum=2**31 - 1
    )
