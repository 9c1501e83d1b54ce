"""What a checkpoint of a run holds beside its state: a whole model, or an adapter alone."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from erniekit.assemble import Assembled
from erniekit.checkpoint.adapter_files import PEFT_BASENAME
from erniekit.checkpoint.raw import to_raw
from erniekit.data.tokenizer import Tokenizer
from erniekit.models.registry import load_family
from erniekit.quant.trained import TrainedScales
from erniekit.train.reference import MovingReference

MODEL_FILES = ("generation_config.json", "LICENSE")


@dataclass(frozen=True)
class Contents:
    """The tensors under the name of their files, and what writes the files beside them.

    adapter: what the tensors are of where they are not the whole model's.
    trained: what quantisation-aware training keeps beside them.
    """

    basename: str
    items: Callable[[], Any]
    write_files: Callable[[Path], None]
    adapter: Any = None
    trained: Callable[[], TrainedScales] | None = None

    def writer(self) -> Callable[[Path], None]:
        """`write_files`, and the scales as they are now, whenever it is called."""
        if self.trained is None:
            return self.write_files
        kept = self.trained()

        def write(folder: Path) -> None:
            self.write_files(folder)
            kept.save(folder)

        return write


def checkpoint_contents(
    built: Assembled,
    tokenizer: Tokenizer,
    source: Path,
    model_name_or_path: str,
    moving: MovingReference | None = None,
) -> Contents:
    """What checkpoints of a run hold.

    Args:
        source: the folder of the model that the run started from.
        model_name_or_path: how the configuration names it.
        moving: a reference model that is part of the run's state.
    """
    if moving is not None:
        plain = checkpoint_contents(built, tokenizer, source, model_name_or_path)

        def write(folder: Path) -> None:
            plain.write_files(folder)
            moving.save(folder)

        return replace(plain, write_files=write)
    trained = None if built.qat is None else built.qat.trained
    if built.adapter is None:
        return Contents(
            "model",
            lambda: load_family(built.config).save_layout(memory_items(built.model), built.config, "hf"),
            lambda folder: write_model_files(folder, built, tokenizer, source),
            trained=trained,
        )
    from erniekit.adapters.state import state_items

    base = base_name(source, model_name_or_path)
    return Contents(
        PEFT_BASENAME,
        lambda: state_items(built.adapter),
        lambda folder: write_adapter_files(folder, built, tokenizer, source, base),
        built.adapter,
        trained,
    )


def memory_items(model: Any) -> Iterator[tuple[str, str, Any]]:
    """(name, safetensors dtype, raw array) of every parameter in memory layout."""
    for name, parameter in model.named_parameters():
        dtype, array = to_raw(parameter)
        yield name, dtype, array


def write_model_files(folder: Path, built: Assembled, tokenizer: Tokenizer, source: Path) -> None:
    """Write what makes a folder of tensors a model folder: configuration, tokenizer, generation settings."""
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[built.compute_dtype]
    text = json.dumps(built.config.to_json(dtype=dtype), indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    _write_companions(folder, tokenizer, source)


def write_adapter_files(
    folder: Path, built: Assembled, tokenizer: Tokenizer, source: Path, base: str
) -> None:
    """Write what makes a folder of tensors an adapter that is ready to use: settings, tokenizer, base."""
    from erniekit.adapters.state import write_settings

    write_settings(built.adapter, folder, adapter_facts(built), base=base)
    _write_companions(folder, tokenizer, source)


def adapter_facts(built: Assembled) -> dict[str, str | None]:
    """Which weights the adapter was trained on, and in which numbers they were when they are quantised."""
    return {"fingerprint": built.fingerprint} | ({"scheme": built.scheme} if built.scheme else {})


def base_name(source: Path, model_name_or_path: str) -> str:
    """How an adapter names its base: as the user did, and a folder by its whole path."""
    return str(source.resolve()) if Path(model_name_or_path).expanduser().is_dir() else model_name_or_path


def _write_companions(folder: Path, tokenizer: Tokenizer, source: Path) -> None:
    for path in [*tokenizer.files(), *(source / name for name in MODEL_FILES)]:
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
