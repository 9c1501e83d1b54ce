"""The table of model families: the `model_type` of a config.json -> its modules."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from erniekit.checkpoint.adapter_files import is_adapter, refuse_adapter
from erniekit.checkpoint.sources import base_folder
from erniekit.data.vision_tokens import VisionTokens
from erniekit.errors import CheckpointError, UnsupportedError

# model_type -> family folder.
MODELS = {
    "ernie4_5": "erniekit.models.ernie45",
    "ernie4_5_moe": "erniekit.models.ernie45",
    "ernie4_5_moe_vl": "erniekit.models.ernie45",  # the text side
    "ernie4_5_vl_moe": "erniekit.models.ernie45",  # the same, as transformers 5 writes it
}
CONFIG_CLASSES = {
    "ernie4_5": "config:Ernie45Config",
    "ernie4_5_moe": "moe_config:Ernie45MoeConfig",
    "ernie4_5_moe_vl": "moe_config:Ernie45MoeConfig",
    "ernie4_5_vl_moe": "moe_config:Ernie45MoeConfig",
}
MODEL_CLASSES = dict.fromkeys(MODELS, "Ernie45")


@dataclass(frozen=True)
class Family:
    """What the rest of ErnieKit asks of a model family."""

    model_type: str

    def build(self, config: Any, *, dtype: str) -> Any:
        """The model with zero weights; imports Paddle."""
        module = import_module(f"{MODELS[self.model_type]}.model")
        return getattr(module, MODEL_CLASSES[self.model_type])(config, dtype=dtype)

    def load_weights(self, folder: Path, config: Any) -> Any:
        """Every tensor of a folder in memory layout, see the family's weights.py."""
        return self.weights.load_weights(folder, config)

    def save_layout(self, items: Any, config: Any, layout: str) -> Any:
        """Tensors in memory layout as files of a layout hold them."""
        return self.weights.save_layout(items, layout, config)

    def names_in_files(self, parameter: str, shape: tuple[int, ...], config: Any) -> tuple[Any, Any]:
        """What a parameter's matrices are called in files: whole, and (where it is fused) in its pieces."""
        layouts = import_module(f"{MODELS[self.model_type]}.layouts")
        whole = layouts.stored_whole(parameter, shape, config, turned=True)
        return whole, layouts.stored_pieces(parameter, shape, config, turned=True)

    @property
    def weights(self) -> Any:
        """The module of weight names and layouts (no Paddle)."""
        return import_module(f"{MODELS[self.model_type]}.weights")

    @property
    def upcycle(self) -> Any:
        """The module that makes a mixture of experts of a dense model (no Paddle)."""
        return import_module(f"{MODELS[self.model_type]}.upcycle")

    @property
    def plan(self) -> Any:
        """The module that says what each part is (no Paddle)."""
        return import_module(f"{MODELS[self.model_type]}.plan")


def read_model_config(folder: Path) -> Any:
    """The config of a model folder.

    Raises:
        CheckpointError: config.json is missing or no JSON.
        UnsupportedError: the model family is not built (yet).
    """
    path = Path(folder) / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        refuse_adapter(Path(folder))
        raise CheckpointError(f"{path} does not exist: {folder} is no model folder") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error})") from error
    model_type = content.get("model_type") or _type_of(content.get("architectures"))
    if model_type not in MODELS:
        known = ", ".join(MODELS)
        raise UnsupportedError(f"{path}: model_type {model_type!r} is not known; known: {known}")
    return config_from_json(model_type, content, source=str(path))


def read_vision_tokens(folder: Path) -> VisionTokens:
    """The vision tokens of a model folder, or of the model that an adapter is for; raises as the above."""
    return read_model_config(base_folder(folder) if is_adapter(folder) else folder).vision_tokens()


def config_from_json(model_type: str, content: Mapping[str, Any], *, source: str) -> Any:
    """The config of a parsed config.json of a known `model_type`; raises as the class's `from_json`."""
    module, _, name = CONFIG_CLASSES[model_type].partition(":")
    found = getattr(import_module(f"{MODELS[model_type]}.{module}"), name)
    return found.from_json(content, source=source)


def load_family(config: Any) -> Family:
    """The family that a config belongs to."""
    for model_type, name in CONFIG_CLASSES.items():
        if type(config).__name__ == name.partition(":")[2]:
            return Family(model_type)
    raise AssertionError(f"no family for {type(config).__name__}")


def _type_of(architectures: list[str] | None) -> str | None:
    """Baidu's first releases name the class only."""
    names = {"Ernie4_5ForCausalLM": "ernie4_5", "Ernie4_5_ForCausalLM": "ernie4_5"}
    names |= {"Ernie4_5_MoeForCausalLM": "ernie4_5_moe"}
    names |= {"Ernie4_5_VLMoeForConditionalGeneration": "ernie4_5_moe_vl"}
    return names.get(architectures[0]) if architectures else None
