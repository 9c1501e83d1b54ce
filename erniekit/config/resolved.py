"""Writes a resolved configuration as YAML."""

from collections.abc import Mapping
from typing import Any

import yaml

from erniekit.config.config import Config
from erniekit.config.keys import section_of

SAFE_TO_START_AGAIN = {"overwrite_output_dir": False, "resume_from_checkpoint": "auto"}


def dump(config: Config, notes: Mapping[str, Any]) -> str:
    """Every key under the name of its section, then the user's own `x-` keys.

    How a run began is not what it is: a file that kept `overwrite_output_dir: true` would delete its
    own run when it is started again, and one that kept a checkpoint's path would go back to it.
    """
    lines: list[str] = []
    section = ""
    for key, value in (config.values() | SAFE_TO_START_AGAIN).items():
        if section_of()[key] != section:
            section = section_of()[key]
            lines += ["", f"# {section}"]
        lines.append(dump_item(key, value))
    if notes:
        lines += ["", "# notes", *(dump_item(key, value) for key, value in notes.items())]
    return "\n".join(lines[1:]) + "\n"


def dump_item(key: str, value: Any) -> str:
    """One `key: value` of a YAML file, on one line where the value is no mapping."""
    plain = list(value) if isinstance(value, tuple) else value
    flow = None if isinstance(plain, list) else False
    text = yaml.safe_dump(
        {key: plain}, default_flow_style=flow, allow_unicode=True, width=10**6, sort_keys=False
    )
    return text.rstrip("\n")
