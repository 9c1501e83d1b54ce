"""A checkpoint as a finished model folder, proven before it gets its name.

The folder is written beside its destination, read back, compared with the source, and only then
renamed. So a destination either does not exist or holds a model that was loaded once and gives
the answers of its source:

* every tensor read back equals the source's tensor, converted, bit by bit;
* the logits of probe tokens, computed from both folders, are equal where the number format holds
  the source's values, and within the format's bound where it does not.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import Item, open_tensors, write_tensors
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.card import build_card, read_run_facts
from erniekit.export.companions import write_companions
from erniekit.export.destination import check_destination, verify_source
from erniekit.export.dtypes import CONFIG_DTYPES, EXPORT_DTYPES, convert, is_exact
from erniekit.export.proof import compare_logits
from erniekit.export.sizes import shard_bytes
from erniekit.log import logger
from erniekit.models.registry import load_family, read_model_config

EXPORT_LAYOUTS = ("hf", "paddle")
_PADDLE_CLASSES = {"Ernie4_5ForCausalLM": "Ernie4_5_ForCausalLM"}


@dataclass(frozen=True)
class Exported:
    """A finished export: where it is, and what the comparison found."""

    folder: Path
    dtype: str
    num_parameters: int
    max_difference: float
    largest_logit: float

    def describe(self) -> str:
        """The comparison in one sentence."""
        if self.max_difference == 0.0:
            return "all tensors and the logits of the probe tokens are equal to the source's"
        return (
            f"all tensors are the source's, rounded to {self.dtype}; largest difference of the probe tokens' "
            f"logits {self.max_difference:.3g} (largest logit {self.largest_logit:.3g})"
        )


def export_model(
    checkpoint: Path,
    output_dir: Path,
    overwrite: bool = False,
    *,
    export_layout: str = "hf",
    export_dtype: str = "auto",
    max_shard_size: float | str = 5,
    copy_tokenizer: bool = True,
    export_dir: str | None = None,
) -> Exported:
    """Write a checkpoint as a model folder, and prove it.

    Args:
        checkpoint: a model folder (a training checkpoint is one), in either layout.
        output_dir: the export goes to its sub-folder `export`, unless `export_dir` names a place.
        overwrite: replace an earlier export at the destination.
        export_layout: `hf` (transformers, vLLM, ...) or `paddle` (FastDeploy).
        export_dtype: `auto` keeps each tensor's format; else fp32, bf16, fp16.
        max_shard_size: of one safetensors file; a number is in GB.
        copy_tokenizer: write tokenizer and chat template too.

    Raises:
        CheckpointError: the source is damaged, the destination is taken, or the export does not
            equal its source; the destination is then as it was before.
        ConfigError: a value is not allowed.
    """
    check_word("export_layout", export_layout, EXPORT_LAYOUTS)
    check_word("export_dtype", export_dtype, ("auto", *EXPORT_DTYPES))
    max_shard_bytes = shard_bytes(max_shard_size)
    destination = Path(export_dir) if export_dir else output_dir / "export"
    check_destination(destination, checkpoint, overwrite=overwrite)
    verify_source(checkpoint)
    config = read_model_config(checkpoint)
    weights = load_family(config).weights
    facts = read_run_facts(checkpoint)
    target = EXPORT_DTYPES.get(export_dtype)
    logger.info(f"exporting {checkpoint} to {destination}")
    with write_folder(destination, overwrite=overwrite) as folder:
        converted = _converted(weights.load_weights(checkpoint, config), target)
        write_tensors(
            folder,
            weights.save_layout(converted, export_layout, config),
            max_shard_bytes=max_shard_bytes,
            metadata={"format": "pt" if export_layout == "hf" else "np"},
        )
        dtype = CONFIG_DTYPES[target or stored_dtype(checkpoint)]
        write_json(folder / "config.json", config_content(config, export_layout, dtype))
        has_template = write_companions(
            checkpoint,
            folder,
            config,
            copy_tokenizer=copy_tokenizer,
            chat_template=facts.settings.get("chat_template"),
        )
        exact, num_parameters = _compare_tensors(weights, config, checkpoint, folder, target)
        largest, difference = compare_logits(checkpoint, folder, exact=exact, dtype=dtype)
        exported = Exported(destination, dtype, num_parameters, difference, largest)
        card = build_card(
            facts,
            title=destination.resolve().name if export_dir else output_dir.resolve().name,
            layout=export_layout,
            dtype=dtype,
            num_parameters=num_parameters,
            verified=exported.describe(),
            has_template=has_template,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return exported


def check_word(key: str, given: str, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless `given` is one of the allowed words of a key."""
    if given not in allowed:
        raise ConfigError(f"{key}: {given} is not known; write one of {', '.join(allowed)}")


def stored_dtype(folder: Path) -> str:
    """Number format of most of the numbers in a model folder, as a word of safetensors."""
    tensors = open_tensors(folder)
    sizes: dict[str, int] = {}
    for name in tensors.names():
        info = tensors.info(name)
        sizes[info.dtype] = sizes.get(info.dtype, 0) + int(np.prod(info.shape))
    return max(sizes, key=lambda dtype: sizes[dtype])


def config_content(config: Any, layout: str, dtype: str) -> dict[str, Any]:
    """Content of config.json as the readers of a layout want it.

    FastDeploy takes `torch_dtype` for the mark of Hugging Face's layout and `dtype` for that of
    Paddle's, and refuses a file with both; transformers 4 and 5 read `torch_dtype`. Paddle's
    readers know the dense model by an older spelling of its class.
    """
    content = config.to_json(dtype=dtype)
    del content["dtype" if layout == "hf" else "torch_dtype"]
    if layout == "paddle":
        content["architectures"] = [_PADDLE_CLASSES.get(name, name) for name in content["architectures"]]
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file as model folders have them: indented, final newline."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _converted(items: Iterator[Item], target: str | None) -> Iterator[Item]:
    for name, dtype, array in items:
        wanted = target or dtype
        yield name, wanted, convert(name, array, dtype, wanted)


def _compare_tensors(
    weights: Any, config: Any, source: Path, export: Path, target: str | None
) -> tuple[bool, int]:
    """Whether no tensor was rounded, and the number of parameters; both folders are read anew."""
    exact, num_parameters = True, 0
    again = read_model_config(export)
    if again != config:
        raise CheckpointError(f"{export}: config.json reads back as another model than {source}")
    pairs = zip(weights.load_weights(source, config), weights.load_weights(export, again), strict=True)
    for (name, dtype, array), (other_name, other_dtype, other) in pairs:
        wanted = target or dtype
        expected = convert(name, array, dtype, wanted)
        if (name, wanted) != (other_name, other_dtype) or expected.tobytes() != other.tobytes():
            raise CheckpointError(f"{export}: tensor {name} reads back differently than it was written")
        exact = exact and is_exact(dtype, wanted)
        num_parameters += array.size
    return exact, num_parameters
