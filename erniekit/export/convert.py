"""A model folder in the other layout: the same bits under other names, turned, fused or split.

Tensors go straight from file to file, one at a time, so the largest of them is all that is in
memory. The folder appears whole, after it was read back and compared.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import TensorFolder, open_tensors, write_tensors
from erniekit.errors import CheckpointError
from erniekit.export.destination import NOT_EXPORTED, verify_source
from erniekit.export.dtypes import CONFIG_DTYPES, EXPORT_DTYPES, convert
from erniekit.export.export import EXPORT_LAYOUTS, check_word, config_content, stored_dtype, write_json
from erniekit.export.sizes import shard_bytes
from erniekit.log import logger
from erniekit.models.registry import load_family, read_model_config

# What is copied beside the weights: tokenizer, template, generation defaults, texts; never code or pickles.
_COPIED = (".json", ".jinja", ".model", ".txt", ".md")
_BLOCK_ROWS = 256


@dataclass(frozen=True)
class Converted:
    """A finished conversion."""

    folder: Path
    source_layout: str
    layout: str
    dtype: str
    num_files: int
    num_bytes: int


def convert_model(
    source: Path, destination: Path, *, layout: str, dtype: str = "auto", max_shard_size: float | str = 5
) -> Converted:
    """Write a model folder in another layout (or the same, with other shards or another number format).

    Args:
        layout: `hf` or `paddle`.
        dtype: `auto` keeps each tensor's bits; else fp32, bf16, fp16.
        max_shard_size: of one file; a number is in GB, `500MB` is understood.

    Raises:
        CheckpointError: the source is damaged, or the destination holds something.
        ConfigError: a value is not allowed.
    """
    check_word("--to", layout, EXPORT_LAYOUTS)
    check_word("--dtype", dtype, ("auto", *EXPORT_DTYPES))
    max_shard_bytes = shard_bytes(max_shard_size)
    refuse_occupied(destination)
    verify_source(source)
    config = read_model_config(source)
    weights = load_family(config).weights.open_weights(source, config)
    target = EXPORT_DTYPES.get(dtype)
    specs = weights.layout_specs(layout, dtype=target)
    logger.info(f"converting {source} ({weights.layout}) to {destination} ({layout})")
    with write_folder(destination) as folder:
        write_tensors(
            folder,
            weights.layout_items(layout, dtype=target, cast=convert),
            max_shard_bytes=max_shard_bytes,
            metadata={"format": "pt" if layout == "hf" else "np"},
            specs=specs,
        )
        written = stored_dtype(folder)
        write_json(folder / "config.json", config_content(config, layout, CONFIG_DTYPES[written]))
        copy_companions(source, folder)
        _compare(weights, layout, target, folder)
        if read_model_config(folder) != config:
            raise CheckpointError(f"{folder}: config.json reads back as another model than {source}")
        files = open_tensors(folder).files()
        num_bytes = sum(path.stat().st_size for path in files)
    return Converted(destination, weights.layout, layout, written, len(files), num_bytes)


def refuse_occupied(destination: Path) -> None:
    """Raise CheckpointError for a destination that holds something."""
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination} is not empty; name a new folder, or move this one away")


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what lies beside the weights of a model folder and belongs to the model."""
    for path in sorted(source.iterdir()):
        is_weights = path.name.endswith((".safetensors", ".safetensors.index.json"))
        if not path.is_file() or is_weights or path.name in NOT_EXPORTED or path.name == "config.json":
            continue
        if path.suffix in _COPIED or path.name.startswith(("LICENSE", "NOTICE")):
            shutil.copyfile(path, folder / path.name)


def _compare(weights: Any, layout: str, dtype: str | None, folder: Path) -> None:
    """Read everything back and compare it with what the source gives, one tensor and some rows at a time."""
    written = open_tensors(folder)
    for name, word, array in weights.layout_items(layout, dtype=dtype, cast=convert):
        info = written.info(name)
        if (info.dtype, info.shape) != (word, array.shape) or not _is_stored(written, name, array):
            raise CheckpointError(f"{folder}: tensor {name} reads back differently than it was written")
        del array  # before the next one is made


def _is_stored(written: TensorFolder, name: str, array: np.ndarray) -> bool:
    for start in range(0, array.shape[0], _BLOCK_ROWS):
        block = array[start : start + _BLOCK_ROWS]
        # As bytes: NaN is not equal to itself, and 0 equals -0.
        if written.read_rows(name, start, start + len(block)).tobytes() != block.tobytes():
            return False
    return True
