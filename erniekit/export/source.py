"""What an export is made from: a model folder, or a model and an adapter that is merged into it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.adapters.merge import Merge
from erniekit.checkpoint.adapter_files import is_adapter, open_adapter
from erniekit.checkpoint.files import Item, open_tensors
from erniekit.checkpoint.fingerprint import Fingerprint
from erniekit.checkpoint.sources import base_folder, companions_folder
from erniekit.errors import CheckpointError
from erniekit.export.dtypes import convert, is_exact
from erniekit.models.registry import load_family, read_model_config


@dataclass(frozen=True)
class Source:
    """Weights, and where what lies beside them is.

    Args:
        checkpoint: what was asked for: a model folder or an adapter.
        folder: the model folder.
        adapter: the adapter to merge, or None.
        companions: where tokenizer, template and generation settings are.
        config: of the model.
    """

    checkpoint: Path
    folder: Path
    adapter: Path | None
    companions: Path
    config: Any

    def items(self, target: str | None) -> Iterator[Item]:
        """Every parameter in memory layout, converted to a dtype word, or in its own.

        Raises:
            CheckpointError: the adapter was trained on other weights, or is of another model.
        """
        family = load_family(self.config)
        items = family.weights.load_weights(self.folder, self.config)
        if self.adapter is None:
            for name, dtype, array in items:
                yield name, target or dtype, convert(name, array, dtype, target or dtype)
            return
        adapter = open_adapter(self.adapter)
        merge = Merge(adapter, lambda name, shape: family.names_in_files(name, shape, self.config))
        fingerprint = Fingerprint()
        for name, dtype, array in fingerprint.watch(items):
            merged = merge.of(name, dtype, array)
            wanted = target or dtype
            if merged is None:
                yield name, wanted, convert(name, array, dtype, wanted)
            else:
                yield name, wanted, convert(name, merged, "F32", wanted)
        merge.check_all_used()
        trained_on = adapter.facts.get("fingerprint", fingerprint.text())
        if trained_on != fingerprint.text():
            raise CheckpointError(
                f"{self.adapter}: the adapter was trained on other weights than those of {self.folder} "
                f"({trained_on[:19]}... and {fingerprint.text()[:19]}...), and a merge would give a model "
                "that nobody trained; name the model that it was trained on"
            )

    def scheme(self) -> str | None:
        """What the weights were quantised by under the adapter while it was trained; None for full ones."""
        return None if self.adapter is None else open_adapter(self.adapter).facts.get("scheme")

    def is_exact(self, target: str | None) -> bool:
        """Whether no number is rounded on its way."""
        dtypes = {dtype for _, dtype, _ in open_tensors(self.folder).specs()}
        return self.adapter is None and all(is_exact(dtype, target or dtype) for dtype in dtypes)


def open_source(checkpoint: Path, adapter: Path | None = None) -> Source:
    """The source that a folder is: a model, or an adapter with the model that it names.

    Args:
        adapter: an adapter for the model in `checkpoint`.
    """
    asked = checkpoint
    if adapter is not None:
        asked = adapter
    elif is_adapter(checkpoint):
        adapter, checkpoint = checkpoint, base_folder(checkpoint)
    companions = companions_folder(adapter) if adapter is not None else checkpoint
    return Source(asked, checkpoint, adapter, companions, read_model_config(checkpoint))


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two raw arrays are equal, not-a-numbers and signs of zeros included."""
    return one.tobytes() == other.tobytes()
