"""Older and other spellings of keys, and what they mean here."""

import re
from collections.abc import Iterable
from dataclasses import replace

from erniekit.config.entries import Entry, Problem

RENAMED = {
    "eval_strategy": "evaluation_strategy",
    "eval_iters": "max_evaluate_steps",
    "tokenizer_name": "tokenizer",
    "in_tokens_batching": "packing",
    "loss_chunk_tokens": "loss_subbatch_seqlen",
    "tensor_model_parallel_size": "tensor_parallel_degree",
    "pipeline_model_parallel_size": "pipeline_parallel_degree",
    "sharding_degree": "sharding_parallel_degree",
    "context_parallel_size": "context_parallel_degree",
    "sep_parallel_degree": "context_parallel_degree",
    "expert_model_parallel_size": "expert_parallel_degree",
    "use_recompute": "recompute",
}
# key -> (key, value) that the older key means when it is true; false means nothing.
SWITCHES = {
    "bf16": ("compute_type", "bf16"),
    "no_cuda": ("device", "cpu"),
    "lora": ("fine_tuning", "LoRA"),
    "tensorwise_offload_optimizer": ("offload_optim", "true"),
}
# Values of the key beside a switch that contradict it not: weights may be stored in fewer bits.
_AGREEING = {"bf16": ("bfloat16", "fp8", "wint8", "wint4", "wint4/8", "nf4")}
SPLIT = {"batch_size": ("per_device_train_batch_size", "per_device_eval_batch_size")}
_WSD = re.compile(r"wsd:(\d+)")
# Upstream's own key behind compute_type; null and an empty word leave the weights as they are.
ALGORITHM = "weight_quantize_algo"
ALGORITHMS = {
    "weight_only_int8": "wint8",
    "weight_only_int4": "wint4",
    "weight_only_mix": "wint4/8",
    "nf4": "nf4",
    "fp8linear": "fp8",
}
# What compute_type: fp8 means, which trains for a scheme; what is given beside it is kept.
COMPUTE_TYPE = "compute_type"
FP8 = {"qat_scheme": "fp8_tensor", "use_lowprecision_moment": "true", "offload_optim": "true"}
ALIASES = (*RENAMED, *SWITCHES, *SPLIT, "lr_scheduler", "pad_to_max_seqlen", ALGORITHM)


def expand_aliases(entries: Iterable[Entry]) -> tuple[dict[str, Entry], list[Problem]]:
    """The entries of one layer (a file, or a command line) under their present keys.

    A key given beside a wider alias of it (`per_device_eval_batch_size` beside `batch_size`) wins.
    """
    entries = list(entries)
    plain = {entry.key: entry for entry in entries if entry.key not in ALIASES}
    meant: dict[str, Entry] = {}
    problems: list[Problem] = []
    for entry in entries:
        if entry.key not in ALIASES:
            continue
        try:
            present = _present(entry)
        except ValueError as error:
            problems.append(Problem(entry.place, str(error)))
            continue
        for means in present:
            beside = plain.get(means.key) if entry.key not in SPLIT else None
            if beside is not None and not _agree(means, beside):
                problems.append(Problem(entry.place, _contradiction(entry, means, beside)))
            if beside is not None and _leaves_open(beside):
                del plain[means.key]
            meant[means.key] = means
    return _with_fp8(meant | plain, meant.get(COMPUTE_TYPE)), problems


def _with_fp8(entries: dict[str, Entry], switched: Entry | None) -> dict[str, Entry]:
    """With what compute_type: fp8 means; `switched` is a compute_type that an alias said beside it."""
    asked = entries.get(COMPUTE_TYPE)
    if asked is None or str(asked.value).lower() != "fp8":
        return entries
    numbers = "bf16" if switched is not None and str(switched.value).lower() == "bf16" else "auto"
    meant = {
        key: replace(asked, alias=COMPUTE_TYPE, key=key, value=value, spelling=value)
        for key, value in {COMPUTE_TYPE: numbers, **FP8}.items()
    }
    return meant | {key: entry for key, entry in entries.items() if key != COMPUTE_TYPE}


def _agree(means: Entry, beside: Entry) -> bool:
    """Whether an alias and the key that it means, both given, say the same."""
    if means.alias in SWITCHES:
        word = str(beside.value).lower()
        return _leaves_open(beside) or word in (str(means.value).lower(), *_AGREEING.get(means.alias, ()))
    return str(means.value).lower() == str(beside.value).lower()


def _leaves_open(entry: Entry) -> bool:
    return entry.value is None or str(entry.value).lower() == "auto"


def _contradiction(entry: Entry, means: Entry, beside: Entry) -> str:
    what = "are one key" if entry.key in RENAMED or entry.key == "lr_scheduler" else "contradict each other"
    return (
        f"{entry.key}: {entry.shown()} and {means.key}: {beside.shown()} ({beside.source}) {what}; "
        f"keep {means.key}"
    )


def _present(entry: Entry) -> list[Entry]:
    """The entries that an alias stands for.

    Raises:
        ValueError: the value fits the alias not at all.
    """
    if entry.key in RENAMED:
        return [replace(entry, alias=entry.key, key=RENAMED[entry.key])]
    if entry.key in SPLIT:
        return [replace(entry, alias=entry.key, key=key) for key in SPLIT[entry.key]]
    if entry.key == "lr_scheduler":
        return _schedule(entry)
    if entry.key == "pad_to_max_seqlen":
        return [_padding(entry)]
    word = str(entry.value).lower()
    if entry.key == ALGORITHM:
        return _quantisation(entry, word)
    if word in ("false", "0", "no", "off", "none", ""):
        return []
    if word not in ("true", "1", "yes", "on"):
        raise ValueError(f"{entry.key}: {entry.shown()} is not allowed: write true or false")
    key, value = SWITCHES[entry.key]
    return [replace(entry, alias=entry.key, key=key, value=value, spelling=value)]


def _quantisation(entry: Entry, word: str) -> list[Entry]:
    if word in ("none", ""):
        return []
    if word not in ALGORITHMS:
        raise ValueError(
            f"{entry.key}: {entry.shown()} is not allowed: write one of {', '.join(ALGORITHMS)}, or in its "
            f"place compute_type: {', '.join(ALGORITHMS.values())}"
        )
    value = ALGORITHMS[word]
    return [replace(entry, alias=entry.key, key="compute_type", value=value, spelling=value)]


def _schedule(entry: Entry) -> list[Entry]:
    """Upstream writes the steady steps of wsd into its name: `wsd:231084`."""
    found = _WSD.fullmatch(str(entry.value))
    if not found:
        return [replace(entry, alias=entry.key, key="lr_scheduler_type")]
    steps = found.group(1)
    return [
        replace(entry, alias=entry.key, key="lr_scheduler_type", value="wsd", spelling="wsd"),
        replace(entry, alias=entry.key, key="wsd_steady_steps", value=int(steps), spelling=steps),
    ]


def _padding(entry: Entry) -> Entry:
    """Upstream's vision-language files write a length where the others write true."""
    if isinstance(entry.value, int) and not isinstance(entry.value, bool) and entry.value > 1:
        return replace(entry, value=True)  # its spelling still says the length, for the rule
    return entry
