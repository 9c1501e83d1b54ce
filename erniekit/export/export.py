"""A checkpoint as a finished model folder, proven before it gets its name.

The folder is written beside its destination, read back, compared with the source, and only then
renamed. So a destination either does not exist or holds a model that was loaded once and gives
the answers of its source:

* every tensor read back equals the source's tensor, converted, bit by bit;
* the logits of probe texts, computed from both folders, are equal where the number format holds
  the source's values, and within the format's bound where it does not.

An adapter is merged on the way, in fp32 and rounded once; its source is the model with the adapter
beside it, unmerged. One that was trained on quantised weights is merged into the full ones, and how far
the result is from the model that was trained is told. Or it is written alone (`adapter.py`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.export.adapter import ExportedAdapter, export_adapter
from erniekit.export.card import build_card, read_run_facts
from erniekit.export.companions import write_companions
from erniekit.export.destination import check_destination, verify_source
from erniekit.export.dtypes import CONFIG_DTYPES, EXPORT_DTYPES
from erniekit.export.gguf_export import ExportedGguf, export_gguf
from erniekit.export.gguf_numbers import NUMBERS
from erniekit.export.probe import probe_rows
from erniekit.export.proof import Comparison, compare_logits, comparison, probe_logits
from erniekit.export.sizes import shard_bytes
from erniekit.export.source import Source, open_source, same_bits
from erniekit.log import logger
from erniekit.models.registry import load_family, read_model_config
from erniekit.quant.folder import read_quantisation
from erniekit.quant.trained import read_trained

EXPORT_LAYOUTS, GGUF = ("hf", "paddle"), "gguf"
_PADDLE_CLASSES = {"Ernie4_5ForCausalLM": "Ernie4_5_ForCausalLM"}


@dataclass(frozen=True)
class Exported:
    """A finished export: where it is, and what the comparison found.

    Args:
        merged: an adapter was.
        scheme: what the weights were quantised by under that adapter while it was trained.
        to_quantised: the merged model beside the adapter on weights that are quantised so.
    """

    folder: Path
    dtype: str
    num_parameters: int
    compared: Comparison
    merged: bool = False
    scheme: str | None = None
    to_quantised: Comparison | None = None

    def describe(self) -> str:
        """The comparison in a sentence or two."""
        if self.merged:
            merged = f"the adapter merged in fp32, rounded once to {self.dtype}"
            text = f"{merged}; merged and unmerged, {self.compared}"
            if self.to_quantised is not None:
                text += (
                    f". It was trained on weights in {self.scheme} and is merged into the full ones; from "
                    f"the model as it was trained, {self.to_quantised}"
                )
            return text
        if self.compared.difference == 0.0:
            return "all tensors and the logits of probe texts are equal to the source's"
        return f"all tensors are the source's, rounded to {self.dtype}; {self.compared}"


def export_model(
    checkpoint: Path,
    output_dir: Path,
    overwrite: bool = False,
    adapter: Path | None = None,
    *,
    export_layout: str = "hf",
    export_dtype: str = "auto",
    max_shard_size: float | str = 5,
    copy_tokenizer: bool = True,
    export_dir: str | None = None,
    merge_adapter: bool = True,
) -> Exported | ExportedAdapter | ExportedGguf:
    """Write a checkpoint as a model folder, and prove it.

    Args:
        checkpoint: a model folder (a training checkpoint is one), in either layout, or an adapter, which
            is merged into the model that it was trained on.
        output_dir: the export goes to its sub-folder `export`, unless `export_dir` names a place.
        overwrite: replace an earlier export at the destination.
        adapter: an adapter to merge into the model of `checkpoint`.
        export_layout: `hf` (transformers, vLLM, ...), `paddle` (FastDeploy) or `gguf` (llama.cpp).
        export_dtype: `auto` keeps each tensor's format; else fp32, bf16, fp16, and with `gguf` those of
            `gguf_numbers.NUMBERS`.
        max_shard_size: of one safetensors file; a number is in GB.
        copy_tokenizer: write tokenizer and chat template too.
        merge_adapter: merge an adapter into its model; otherwise it is written alone, in the format of
            peft (`hf`) or of PaddleFormers (`paddle`).

    Raises:
        CheckpointError: the source is damaged, the adapter is of other weights, the destination is
            taken, or the export does not equal its source; the destination is then as it was before.
        ConfigError: a value is not allowed.
    """
    is_gguf = export_layout == GGUF
    check_word("export_layout", export_layout, (*EXPORT_LAYOUTS, GGUF))
    check_word("export_dtype", export_dtype, ("auto", *(NUMBERS if is_gguf else EXPORT_DTYPES)))
    if is_gguf and not merge_adapter:
        raise ConfigError(
            "merge_adapter: false writes an adapter alone, which export_layout: gguf has no place for; write "
            "export_layout: hf, or merge_adapter: true"
        )
    destination = Path(export_dir) if export_dir else output_dir / "export"
    check_destination(destination, checkpoint, overwrite=overwrite)
    source = open_source(checkpoint, adapter)
    for folder in {source.folder, source.adapter or source.folder}:
        check_destination(destination, folder, overwrite=overwrite)
        verify_source(folder)
    if merge_adapter or source.adapter is None:
        _require_full(source.folder)
    title = (destination if export_dir else output_dir).resolve().name
    if is_gguf:
        return export_gguf(
            *(source, destination, title),
            overwrite=overwrite,
            export_dtype=export_dtype,
            stored=stored_dtype(source.folder),
            copy_tokenizer=copy_tokenizer,
        )
    form: dict[str, Any] = {
        "overwrite": overwrite,
        "layout": export_layout,
        "target": EXPORT_DTYPES.get(export_dtype),
        "max_shard_bytes": shard_bytes(max_shard_size),
        "copy_tokenizer": copy_tokenizer,
    }
    if not merge_adapter:
        return export_adapter(source, destination, **form)
    return _export_whole(source, destination, title, **form)


def _require_full(folder: Path) -> None:
    """Refuse weights of few bits, which are neither merged into nor written in another layout."""
    kept = read_quantisation(folder)
    if kept is not None:
        raise UnsupportedError(
            f"{folder} is quantised ({kept.scheme}), and exports are of models in full: it is used as it "
            "is; name the model that it was made of, or, for an adapter over it, write merge_adapter=false, "
            "which writes the adapter alone"
        )


def _export_whole(
    source: Source,
    destination: Path,
    title: str,
    *,
    overwrite: bool,
    layout: str,
    target: str | None,
    max_shard_bytes: int,
    copy_tokenizer: bool,
) -> Exported:
    weights = load_family(source.config).weights
    facts = read_run_facts(source.checkpoint)
    template = facts.settings.get("chat_template")
    merging = f", merged into {source.folder}" if source.adapter else ""
    if source.scheme():
        merging += f" as it is on the disk (it was trained on weights in {source.scheme()})"
    logger.info(f"exporting {source.checkpoint}{merging}, to {destination}")
    with write_folder(destination, overwrite=overwrite) as folder:
        write_tensors(
            folder,
            weights.save_layout(source.items(target), layout, source.config),
            max_shard_bytes=max_shard_bytes,
            metadata={"format": "pt" if layout == "hf" else "np"},
        )
        dtype = CONFIG_DTYPES[target or stored_dtype(source.folder)]
        write_json(folder / "config.json", config_content(source.config, layout, dtype))
        has_template = write_companions(
            source.companions, folder, source.config, copy_tokenizer=copy_tokenizer, chat_template=template
        )
        trained = read_trained(source.checkpoint)
        if trained is not None:
            trained.save(folder)
        num_parameters = _compare_tensors(weights, source, folder, target)
        rows = probe_rows(source.companions, source.config.vocab_size, chat_template=template)
        # One model is in memory at a time.
        expected = probe_logits(source.folder, rows, source.adapter)
        found = probe_logits(folder, rows)
        compared = compare_logits(expected, found, folder, exact=source.is_exact(target), dtype=dtype)
        scheme, to_quantised = source.scheme(), None
        if scheme is not None:
            to_quantised = comparison(probe_logits(source.folder, rows, source.adapter, scheme), found)
        exported = Exported(
            *(destination, dtype, num_parameters, compared, source.adapter is not None),
            *(scheme, to_quantised),
        )
        card = build_card(
            facts,
            title=title,
            layout=layout,
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


def _compare_tensors(weights: Any, source: Source, export: Path, target: str | None) -> int:
    """The number of parameters, when the export holds what it should; both folders are read anew."""
    num_parameters = 0
    again = read_model_config(export)
    if again != source.config:
        raise CheckpointError(f"{export}: config.json reads back as another model than {source.folder}")
    pairs = zip(source.items(target), weights.load_weights(export, again), strict=True)
    for (name, dtype, expected), (other_name, other_dtype, other) in pairs:
        if (name, dtype) != (other_name, other_dtype) or not same_bits(expected, other):
            raise CheckpointError(f"{export}: tensor {name} reads back differently than it was written")
        num_parameters += expected.size
    return num_parameters
