"""A model folder with its weights in smaller (or fewer) files; not a bit of them changes."""

import shutil
from pathlib import Path

from erniekit.checkpoint.adapter_files import refuse_adapter
from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError
from erniekit.export.destination import NOT_EXPORTED, check_destination, verify_source
from erniekit.export.sizes import shard_bytes
from erniekit.log import logger

# Belongs to a training run, or to the old set of files.
_LEFT_BEHIND = NOT_EXPORTED | {"model.safetensors.index.json"}


def split_model(
    checkpoint: Path, output_dir: Path, overwrite: bool = False, *, max_shard_size: float | str = 5
) -> Path:
    """Save the weights again in files of at most `max_shard_size`, into `output_dir/split_export`.

    At most one new file is in memory at a time. The folder appears whole, after it was compared
    with the source.

    Args:
        max_shard_size: a number is in GB; a tensor that is larger gets a file of its own.

    Raises:
        CheckpointError: the source is damaged or an adapter, or the destination is taken.
        ConfigError: `max_shard_size` is not a size.
    """
    refuse_adapter(checkpoint)
    max_shard_bytes = shard_bytes(max_shard_size)
    destination = output_dir / "split_export"
    check_destination(destination, checkpoint, overwrite=overwrite)
    verify_source(checkpoint)
    source = open_tensors(checkpoint)
    with write_folder(destination, overwrite=overwrite) as folder:
        write_tensors(folder, source.items(), max_shard_bytes=max_shard_bytes, metadata=source.metadata)
        for path in sorted(checkpoint.iterdir()):
            if path.is_file() and path.suffix != ".safetensors" and path.name not in _LEFT_BEHIND:
                shutil.copyfile(path, folder / path.name)
        _compare(checkpoint, folder)
    num_files = len(list(destination.glob("*.safetensors")))
    logger.info(f"split {checkpoint} into {num_files} files in {destination}")
    return destination


def _compare(source_folder: Path, folder: Path) -> None:
    source, again = open_tensors(source_folder), open_tensors(folder)
    if sorted(source.names()) != sorted(again.names()):
        raise CheckpointError(f"{folder}: holds other tensors than {source_folder}")
    for name in source.names():
        before, after = source.info(name), again.info(name)
        same = (before.dtype, before.shape) == (after.dtype, after.shape)
        if not same or source.read(name).tobytes() != again.read(name).tobytes():
            raise CheckpointError(f"{folder}: tensor {name} reads back differently than it was written")
