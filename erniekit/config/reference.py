"""Writes the reference of all keys (docs/configuration.md) from the sections and the upstream table."""

import json
from dataclasses import fields
from typing import Any

from erniekit.config.aliases import ALGORITHM, ALGORITHMS, RENAMED, SPLIT, SWITCHES
from erniekit.config.coerce import type_words
from erniekit.config.config import SECTIONS
from erniekit.config.fields import describe_limits, rule_of
from erniekit.config.keys import NO_EFFECT, NOT_BUILT, declared_keys, upstream_keys

_HEAD = """<!-- Written by `erniekit config reference`; change the sections in erniekit/config instead. -->
# Configuration

A configuration is a flat YAML or JSON file; the words after it on a command line (`key=value`,
`--key value`, `--key=value`) win over it, and `key=null` returns a key to its default. One file may
serve all commands. Values may refer to others (`output_dir: ./runs/${run_name}`) and to the
environment (`${oc.env:HOME}`). Keys that start with `x-` are free for notes. Aliases and `<<: *name`
work as in any YAML. The value of a key whose name is that of a secret (key, token, secret, password)
is neither shown nor saved; secrets belong in the environment. `erniekit config check` reports all
mistakes of a file at once; `erniekit config show` tells where each value comes from.
"""

_DEFAULTS = """
## Where defaults differ from upstream on purpose

| key | upstream | here | why |
|---|---|---|---|
| `fine_tuning` | LoRA | Full | a run trains what its file says, not an adapter nobody asked for |
| `compute_type` | bf16 | auto | bf16 on GPUs, and on CPUs that multiply it; fp32 elsewhere |
| `resume_from_checkpoint` | ignored | auto | a run that was interrupted continues |
| `num_samples_each_epoch` | 6000000 | null | an epoch is the data once; a larger number is cut to it |
| `logging_steps` | 500 | 1 | a short run would show nothing |
| `loss_subbatch_seqlen` | 32768 | 1024 | so many positions of logits are held at once |
| `use_sparse_head_and_loss_fn` | false | true | the loss is the same; unlabelled positions cost nothing |
| `temperature`, `top_p`, `repetition_penalty` | 0.95, 0.7, 1.0 | null | as the checkpoint has it |
| `per_device_train_batch_size`, `per_device_eval_batch_size` | 8 | 1 | as `batch_size` has it |
"""


def write_reference() -> str:
    """The reference as Markdown."""
    parts = [_HEAD]
    parts += [_section(name, section) for name, section in SECTIONS.items()]
    parts += [_aliases(), _DEFAULTS, _upstream()]
    return "\n".join(part.strip("\n") + "\n" for part in parts)


def _section(name: str, section: type) -> str:
    lines = [
        f"## {name.replace('_', ' ').capitalize()}",
        "",
        str(section.__doc__).strip(),
        "",
        "| key | type | default | what it does |",
        "|---|---|---|---|",
    ]
    for declared in fields(section):
        rule = rule_of(declared)
        limits = describe_limits(rule)
        told = f"{type_words(declared)}{f', {limits}' if limits else ''}"
        later = f" (not built yet: {', '.join(rule.not_built)})" if rule.not_built else ""
        required = f"; required by {', '.join(rule.required_by)}" if rule.required_by else ""
        lines.append(
            f"| `{declared.name}` | {told} | {_default(declared.default)} | {rule.help}{required}{later} |"
        )
    return "\n".join(lines)


def _default(value: Any) -> str:
    text = json.dumps(list(value) if isinstance(value, tuple) else value)
    return "" if text == '""' else f"`{text.strip(chr(34))}`"


def _aliases() -> str:
    rows = {old: f"`{new}`" for old, new in RENAMED.items()}
    rows |= {old: " and ".join(f"`{key}`" for key in keys) for old, keys in SPLIT.items()}
    rows |= {old: f"true means `{key}: {value}`" for old, (key, value) in SWITCHES.items()}
    meanings = ", ".join(f"{word} is {value}" for word, value in ALGORITHMS.items())
    rows[ALGORITHM] = f"`compute_type`: {meanings}"
    rows["lr_scheduler"] = "`lr_scheduler_type`; `wsd:N` also sets `wsd_steady_steps: N`"
    lines = ["## Other spellings", "", "| key | meaning |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{old}` | {meaning} |" for old, meaning in sorted(rows.items()))])


def _upstream() -> str:
    """Upstream's other keys, gathered by reason."""
    lines = ["## Upstream's other keys"]
    for fate, head, words in (
        (NO_EFFECT, "Accepted without effect (told once)", "why"),
        (NOT_BUILT, "Not built yet (an error, unless the value asks for nothing)", "feature"),
    ):
        reasons: dict[str, list[str]] = {}
        for key, row in upstream_keys().items():
            if row.fate == fate and key not in declared_keys():
                reasons.setdefault(row.detail, []).append(f"`{key}`")
        lines += ["", f"### {head}", "", f"| {words} | keys |", "|---|---|"]
        lines += [f"| {reason} | {', '.join(keys)} |" for reason, keys in sorted(reasons.items())]
    return "\n".join(lines)
