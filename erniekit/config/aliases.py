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
}
# key -> (key, value) that the older key means when it is true; false means nothing.
SWITCHES = {
    "bf16": ("compute_type", "bf16"),
    "no_cuda": ("device", "cpu"),
    "lora": ("fine_tuning", "LoRA"),
}
SPLIT = {"batch_size": ("per_device_train_batch_size", "per_device_eval_batch_size")}
_WSD = re.compile(r"wsd:(\d+)")
ALIASES = (*RENAMED, *SWITCHES, *SPLIT, "lr_scheduler", "pad_to_max_seqlen")


def expand_aliases(entries: Iterable[Entry]) -> tuple[dict[str, Entry], list[Problem]]:
    """The entries of one layer (a file, or a command line) under their present keys.

    A key given beside a wider alias of it (`per_device_eval_batch_size` beside `batch_size`) wins.
    """
    plain: dict[str, Entry] = {}
    meant: dict[str, Entry] = {}
    problems: list[Problem] = []
    for entry in entries:
        if entry.key not in ALIASES:
            plain[entry.key] = entry
            continue
        try:
            for present in _present(entry):
                meant[present.key] = present
        except ValueError as error:
            problems.append(Problem(entry.source, str(error)))
            continue
        now = RENAMED.get(entry.key)
        other = next((e for e in entries if e.key == now), None) if now else None
        if other is not None and other.value != entry.value:
            problems.append(
                Problem(
                    entry.source,
                    f"{entry.key}: {entry.shown()} and {now}: {other.shown()} ({other.source}) are one key; "
                    f"keep {now}",
                )
            )
    return meant | plain, problems


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
    if word in ("false", "0", "no", "off", "none", ""):
        return []
    if word not in ("true", "1", "yes", "on"):
        raise ValueError(f"{entry.key}: {entry.shown()} is not allowed: write true or false")
    key, value = SWITCHES[entry.key]
    return [replace(entry, alias=entry.key, key=key, value=value, spelling=value)]


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
        return replace(entry, value=True, spelling=None)
    return entry
