"""Folders that hold an adapter and no model, in the two formats there are.

| | peft | PaddleFormers |
|---|---|---|
| settings | `adapter_config.json` | `lora_config.json` |
| tensors | `adapter_model.safetensors` | `peft_model*.safetensors` |
| prefix | `base_model.model.` | none |
| A | `NAME.lora_A.weight` [r, in] | `NAME.lora_A` [in, r] |
| B | `NAME.lora_B.weight` [out, r] | `NAME.lora_B` [r, out] |
| names | those of Hugging Face's files, fused weights in pieces | those of Paddle's files, fused |

Both compute y = x W + scale (x A) B, with scale = alpha / r or, rank-stabilised, alpha / sqrt(r).
What only ErnieKit knows (which weights the adapter was trained on) is in a third file beside them,
`erniekit_adapter.json`; an adapter from elsewhere has none.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.files import TensorFolder, open_tensors
from erniekit.errors import CheckpointError, UnsupportedError

PEFT_CONFIG, PEFT_BASENAME = "adapter_config.json", "adapter_model"
PADDLE_CONFIG, PADDLE_BASENAME = "lora_config.json", "peft_model"
OWN_FILE = "erniekit_adapter.json"
PREFIX = "base_model.model."
# Settings of peft that change what is computed and are not known here, with the value that asks for nothing.
_REFUSED: dict[str, Any] = {
    "fan_in_fan_out": False,
    "bias": "none",
    "lora_bias": False,
    "layer_replication": None,
    "use_qalora": False,
    "alora_invocation_tokens": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "arrow_config": None,
}
_FACTOR = re.compile(r"(.+)\.(lora_A|lora_B|lora_magnitude_vector)(\.weight|\.default\.weight)?")


@dataclass(frozen=True)
class AdapterSettings:
    """What the settings file of an adapter says.

    Args:
        rank, alpha: of every matrix that `ranks` and `alphas` (regular expressions on names) say nothing of.
        rank_stabilised: scale is alpha / sqrt(rank).
        magnitudes: whether the columns have trained lengths (DoRA).
        base: where the model is that it was trained on, as its maker named it.
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    rank_stabilised: bool = False
    magnitudes: bool = False
    base: str | None = None
    modules_to_save: tuple[str, ...] = ()
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def scale(self, name: str, rank: int) -> float:
        """The scale of the matrix `name` whose factors have this rank."""
        alpha = _of_pattern(self.alphas, name, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


@dataclass(frozen=True)
class Pair:
    """The factors of one matrix as fp32: A [in, r], B [r, out], and their scale; magnitude [out] or None."""

    name: str
    a: np.ndarray
    b: np.ndarray
    scale: float
    magnitude: np.ndarray | None


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk; tensors are read when they are asked for.

    Args:
        facts: content of `erniekit_adapter.json`, empty for an adapter from elsewhere.
        turned: whole tensors are as in Hugging Face's files, [out, in].
    """

    folder: Path
    settings: AdapterSettings
    tensors: TensorFolder
    facts: Mapping[str, Any]
    turned: bool = True

    def pairs(self) -> Iterator[Pair]:
        """Every adapted matrix, under the name of its module without a format's prefix."""
        for name, keys in self._keys().items():
            a, b = keys.get("lora_A"), keys.get("lora_B")
            if a is None or b is None:
                raise CheckpointError(f"{self.folder}: {name} has only one of lora_A and lora_B")
            first, second = self.read(a), self.read(b)
            if a.endswith(".weight"):
                first, second = first.T, second.T
            rank = first.shape[1]
            if rank != second.shape[0]:
                raise CheckpointError(f"{self.folder}: {a} and {b} are of rank {rank} and {second.shape[0]}")
            key = keys.get("lora_magnitude_vector")
            magnitude = self.read(key).reshape(-1) if key else None
            yield Pair(name, first, second, self.settings.scale(name, rank), magnitude)

    def dtype(self) -> str:
        """The dtype word of the factors."""
        return self.tensors.info(next(iter(self.tensors.names()))).dtype

    def whole_tensors(self) -> dict[str, str]:
        """Parameter name -> key of every tensor that replaces one of the model (`modules_to_save`)."""
        found = {}
        for key in self.tensors.names():
            if not _FACTOR.fullmatch(key):
                found[_plain(key).replace(".modules_to_save.default", "")] = key
        return found

    def read(self, key: str) -> np.ndarray:
        """A tensor, as fp32."""
        return widened(self.tensors.read(key), self.tensors.info(key).dtype, f"{self.folder}: {key}")

    def _keys(self) -> dict[str, dict[str, str]]:
        keys: dict[str, dict[str, str]] = {}
        for key in self.tensors.names():
            found = _FACTOR.fullmatch(key)
            if found:
                keys.setdefault(_plain(found[1]), {})[found[2]] = key
        return keys


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter (beside a model's config.json it is a model's)."""
    folder = Path(folder)
    if (folder / "config.json").is_file():
        return False
    return (folder / PEFT_CONFIG).is_file() or (folder / PADDLE_CONFIG).is_file()


def refuse_adapter(folder: Path) -> None:
    """Raise CheckpointError for an adapter where only a whole model will do."""
    if is_adapter(folder):
        raise CheckpointError(
            f"{folder} holds an adapter and no model; `erniekit export {folder}` merges it into its model"
        )


def open_adapter(folder: Path) -> Adapter:
    """Open an adapter in either format.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedError: the adapter is of a kind that is not built; names the setting.
    """
    folder = Path(folder)
    own = folder / OWN_FILE
    facts = _read_json(own) if own.is_file() else {}
    if (folder / PEFT_CONFIG).is_file():
        settings = _peft_settings(folder / PEFT_CONFIG)
        return Adapter(folder, settings, open_tensors(folder, PEFT_BASENAME), facts)
    if (folder / PADDLE_CONFIG).is_file():
        settings = _paddle_settings(folder / PADDLE_CONFIG)
        return Adapter(folder, settings, open_tensors(folder, PADDLE_BASENAME), facts, False)
    where = f"{folder} holds no adapter" if folder.is_dir() else f"{folder} does not exist"
    raise CheckpointError(f"{where}: neither {PEFT_CONFIG} nor {PADDLE_CONFIG} is there")


def peft_config(settings: AdapterSettings, target_modules: list[str]) -> dict[str, Any]:
    """Content of `adapter_config.json`."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": settings.base,
        "r": settings.rank,
        "lora_alpha": _number(settings.alpha),
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilised,
        "use_dora": settings.magnitudes,
        "target_modules": target_modules,
        "modules_to_save": list(settings.modules_to_save) or None,
        "rank_pattern": dict(settings.ranks),
        "alpha_pattern": dict(settings.alphas),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def paddle_config(settings: AdapterSettings, target_modules: list[str], *, dtype: str) -> dict[str, Any]:
    """Content of `lora_config.json`."""
    return {
        "r": settings.rank,
        "lora_alpha": _number(settings.alpha),
        "lora_dropout": settings.dropout,
        "rslora": settings.rank_stabilised,
        "scaling": settings.scale("", settings.rank),
        "target_modules": target_modules,
        "trainable_modules": None,
        "lora_plus_scale": 1.0,
        "base_model_name_or_path": settings.base,
        "dtype": dtype,
    }


def widened(array: np.ndarray, dtype: str, where: str = "") -> np.ndarray:
    """A raw array as fp32."""
    if dtype == "F32":
        return array
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return array.astype(np.float32)
    raise UnsupportedError(f"{where}: tensors in {dtype} are no adapter's")


def _peft_settings(path: Path) -> AdapterSettings:
    content = _read_json(path)
    kind = str(content.get("peft_type", "")).upper()
    if kind != "LORA":
        raise UnsupportedError(f"{path}: peft_type {kind or 'none'} is not built; LORA is")
    for key, harmless in _REFUSED.items():
        if content.get(key, harmless) not in (harmless, None, False, [], {}):
            raise UnsupportedError(f"{path}: {key}: {content[key]!r} is not built")
    settings = AdapterSettings(
        rank=_whole(content, "r", path),
        alpha=_float(content, "lora_alpha", path),
        dropout=float(content.get("lora_dropout") or 0.0),
        rank_stabilised=bool(content.get("use_rslora")),
        magnitudes=bool(content.get("use_dora")),
        base=content.get("base_model_name_or_path") or None,
        modules_to_save=tuple(content.get("modules_to_save") or ()),
        ranks=dict(content.get("rank_pattern") or {}),
        alphas=dict(content.get("alpha_pattern") or {}),
    )
    return settings


def _paddle_settings(path: Path) -> AdapterSettings:
    content = _read_json(path)
    for key in ("do_qat", "trainable_bias", "enable_lora_list"):
        if content.get(key):
            raise UnsupportedError(f"{path}: {key}: {content[key]!r} is not built")
    return AdapterSettings(
        rank=_whole(content, "r", path),
        alpha=_float(content, "lora_alpha", path),
        dropout=float(content.get("lora_dropout") or 0.0),
        rank_stabilised=bool(content.get("rslora")),
        base=content.get("base_model_name_or_path") or None,
        modules_to_save=tuple(content.get("trainable_modules") or ()),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return content


def _whole(content: Mapping[str, Any], key: str, path: Path) -> int:
    value = content.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(f"{path}: {key}: {value!r} is no rank; a whole number above 0 is")
    return value


def _float(content: Mapping[str, Any], key: str, path: Path) -> float:
    value = content.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{path}: {key}: {value!r} is no number")
    return float(value)


def _of_pattern(patterns: Mapping[str, float], name: str, default: float) -> float:
    """The value whose pattern fits the end of a name, as peft reads `alpha_pattern`."""
    for pattern, value in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", name):
            return value
    return default


def _plain(key: str) -> str:
    """A key without the prefix of its format, under the name that the model has in memory."""
    name = key
    while name.startswith(PREFIX):
        name = name.removeprefix(PREFIX)
    return f"model.{name.removeprefix('ernie.')}" if name.startswith("ernie.") else name


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value
