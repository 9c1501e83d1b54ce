"""An adapter as a folder of its own, in the format of peft or of PaddleFormers.

It is put on its model, written from there, put on the model again from what was written, and the
logits of probe texts are compared, before the folder gets its name.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erniekit.checkpoint.adapter_files import PADDLE_BASENAME, PEFT_BASENAME, open_adapter
from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import Item, write_tensors
from erniekit.errors import ConfigError
from erniekit.export.card import read_run_facts
from erniekit.export.companions import write_companions
from erniekit.export.dtypes import CONFIG_DTYPES, convert
from erniekit.export.probe import probe_rows
from erniekit.export.proof import Comparison, compare_logits, packed_logits, probe_logits
from erniekit.export.source import Source
from erniekit.log import logger

_FORMATS = {"hf": "peft's format", "paddle": "PaddleFormers' format"}


@dataclass(frozen=True)
class ExportedAdapter:
    """An adapter that was written, and what the comparison found."""

    folder: Path
    layout: str
    dtype: str
    num_parameters: int
    compared: Comparison

    def describe(self) -> str:
        """The comparison in one sentence."""
        return (
            f"the adapter in {_FORMATS[self.layout]}, {self.num_parameters:,} numbers in {self.dtype}; "
            f"on its model before and after, {self.compared}"
        )


def export_adapter(
    source: Source,
    destination: Path,
    *,
    overwrite: bool,
    layout: str,
    target: str | None,
    max_shard_bytes: int,
    copy_tokenizer: bool,
) -> ExportedAdapter:
    """Write the adapter of a source without its model.

    Args:
        layout: `hf` for peft's format, `paddle` for PaddleFormers'.
        target: dtype word of the factors; None keeps theirs.

    Raises:
        ConfigError: the source has no adapter, or one that the format cannot hold.
        CheckpointError: what was written does not equal the source.
    """
    if source.adapter is None:
        raise ConfigError(
            f"merge_adapter: false, and {source.checkpoint} is a whole model; name an adapter, or leave the "
            "key out"
        )
    template = read_run_facts(source.adapter).settings.get("chat_template")
    rows = probe_rows(source.companions, source.config.vocab_size, chat_template=template)
    target = target or open_adapter(source.adapter).dtype()
    logger.info(f"exporting the adapter {source.adapter} to {destination}")
    with write_folder(destination, overwrite=overwrite) as folder:
        expected, num_parameters = _write(source, folder, rows, layout, target, max_shard_bytes)
        write_companions(
            source.companions, folder, source.config, copy_tokenizer=copy_tokenizer, chat_template=template
        )
        found = probe_logits(source.folder, rows, folder)
        # The factors of a fused weight are summed in another order.
        compared = compare_logits(expected, found, folder, exact=False, dtype=CONFIG_DTYPES[target])
    return ExportedAdapter(destination, layout, CONFIG_DTYPES[target], num_parameters, compared)


def _write(
    source: Source, folder: Path, rows: list[list[int]], layout: str, target: str, max_shard_bytes: int
) -> tuple[Any, int]:
    """Write tensors and settings; the logits of the source, and how many numbers were written."""
    from erniekit.adapters import state
    from erniekit.assemble import load_for_inference

    assert source.adapter is not None
    built = load_for_inference(source.folder, [source.adapter], compute_type="fp32")
    applied = built.adapter
    given = open_adapter(source.adapter)
    facts = {fact: given.facts[fact] for fact in ("fingerprint", "scheme") if fact in given.facts}
    base = given.settings.base or str(source.folder.resolve())
    written = 0

    def converted(items: Iterator[Item]) -> Iterator[Item]:
        nonlocal written
        for name, dtype, array in items:
            written += array.size
            yield name, target, convert(name, array, dtype, target)

    items = state.state_items(applied) if layout == "hf" else state.paddle_items(applied)
    write_tensors(
        folder,
        converted(items),
        max_shard_bytes=max_shard_bytes,
        metadata={"format": "pt" if layout == "hf" else "np"},
        basename=PEFT_BASENAME if layout == "hf" else PADDLE_BASENAME,
    )
    if layout == "hf":
        state.write_settings(applied, folder, facts, base=base)
    else:
        state.write_paddle_settings(applied, folder, facts, base=base, dtype=CONFIG_DTYPES[target])
    return packed_logits(built.model, rows), written
