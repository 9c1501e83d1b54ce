"""The models that are known by name: what they are called on the hubs, and their numbers.

The numbers (presets.json) are for looking before downloading; a downloaded model is built from
its own config.json. What could not be confirmed is marked with the reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

STARTER = "starter"
ORGANISATION = "baidu"


@dataclass(frozen=True)
class Preset:
    """A released model: `hub` maps layout (hf, paddle) to hub id, `uncertain` a number to why it is.

    not_built_parameters: of `parameters`, those of parts that are not built yet (the vision tower).
    """

    name: str
    kind: str
    model_type: str
    hub: Mapping[str, str]
    config: Mapping[str, Any]
    parameters: int
    active_parameters: int
    not_built_parameters: int
    uncertain: Mapping[str, str]

    def hub_id(self) -> str | None:
        """The hub id to download; the Hugging Face layout, which more tools read, where there are both."""
        return self.hub.get("hf") or self.hub.get("paddle")


@lru_cache(maxsize=1)
def read_presets() -> tuple[Preset, ...]:
    """All presets, smallest architecture first."""
    content = json.loads(Path(__file__).with_name("presets.json").read_text(encoding="utf-8"))
    presets = []
    for model in content["models"]:
        architecture = content["architectures"][model["architecture"]]
        presets.append(Preset(name=model["name"], kind=model["kind"], hub=model["hub"], **architecture))
    return tuple(presets)


def find_preset(name: str) -> Preset | None:
    """The preset of a name, also in other case, with `baidu/` before it or a layout's suffix behind it."""
    wanted = name.lower().removeprefix(f"{ORGANISATION}/")
    for preset in read_presets():
        names = {preset.name.lower(), *(hub_id.partition("/")[2].lower() for hub_id in preset.hub.values())}
        if wanted in names:
            return preset
    return None


def preset_hub_id(name: str) -> str | None:
    """The hub id of a bare name (`ERNIE-4.5-0.3B`, `ernie-4.5-0.3b-paddle`); None if it is no preset."""
    preset = find_preset(name) if "/" not in name else None
    if preset is None:
        return None
    exact = [hub_id for hub_id in preset.hub.values() if hub_id.partition("/")[2].lower() == name.lower()]
    return exact[0] if exact else preset.hub_id()


def known_names() -> list[str]:
    """Every name that `model_name_or_path` takes for a preset, for suggestions."""
    names = [preset.name for preset in read_presets()]
    return names + [hub_id for preset in read_presets() for hub_id in preset.hub.values()]
