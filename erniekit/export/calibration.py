"""The data of a quantisation: what it is calibrated with, and held-out text to tell its quality on."""

from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.checkpoint.sources import companions_folder
from erniekit.config.config import Config
from erniekit.data.pack import Batch, BatchShape
from erniekit.data.pipeline import build_loader, iterate_eval, open_eval_samples, open_train_samples
from erniekit.data.reader import READER_KEYS, SampleReader, open_reader
from erniekit.log import logger
from erniekit.models.registry import read_vision_tokens

# Tokens of a held-out batch.
_EVALUATED = 8192


def calibration_batches(config: Config, folder: Path) -> list[Batch]:
    """The first batches of the training data, of `num_calibration_tokens` at least if there are as many.

    None where no data is named.
    """
    if not config.train_data.train_dataset_path:
        return []
    reader, shape, sequences = _reader(config, folder), _shape(config), config.sequences
    samples = open_train_samples(reader, config.run.seed, **asdict(config.train_data))
    loader = build_loader(
        *(samples, shape, config.run.seed),
        max_seq_len=sequences.max_seq_len,
        packing=sequences.packing,
        buffer_size=sequences.buffer_size,
        pad_to_max_seqlen=False,
        dataloader_num_workers=0,
    )
    found: list[Batch] = []
    while (
        loader.epoch < 1 and sum(batch.num_tokens for batch in found) < config.quantize.num_calibration_tokens
    ):
        found += loader.next_step()
    tokens = sum(batch.num_tokens for batch in found)
    if tokens < config.quantize.num_calibration_tokens:
        logger.warning(
            f"train_dataset_path has {tokens:,} tokens, which all calibrate; num_calibration_tokens asks for "
            f"{config.quantize.num_calibration_tokens:,}"
        )
    return found


def held_out_batches(config: Config, folder: Path) -> list[Batch]:
    """All batches of the held-out data, or `max_evaluate_steps` of them; none where none is named."""
    if not config.eval_data.eval_dataset_path:
        return []
    samples = open_eval_samples(_reader(config, folder), **asdict(config.eval_data))
    limit, sequences = config.evaluation.max_evaluate_steps, config.sequences
    if limit > 0:
        shape = _shape(config)
    else:  # numbers of few bits are made anew for every batch, so batches are large
        rows = max(config.batch.per_device_eval_batch_size, _EVALUATED // sequences.max_seq_len)
        shape = _shape(config, per_device_eval_batch_size=rows)
    every = iterate_eval(samples, shape, max_seq_len=sequences.max_seq_len, packing=sequences.packing)
    return list(islice(every, limit) if limit > 0 else every)


def arrays_of(batch: Batch) -> Mapping[str, np.ndarray]:
    """What a model is given of a batch, by the names of its `forward`."""
    found: dict[str, Any] = {
        "input_ids_BT": batch.input_ids,
        "position_ids_BT": batch.position_ids,
        "attend_from_BT": batch.attend_from,
        "token_type_ids_BT": batch.token_types,
    }
    return {name: array for name, array in found.items() if array is not None}


def _reader(config: Config, folder: Path) -> SampleReader:
    return open_reader(
        companions_folder(folder),
        config.run.stage,
        read_vision_tokens(folder),
        tokenizer=config.model.tokenizer,
        **{key: getattr(config.sequences, key) for key in READER_KEYS},
    )


def _shape(config: Config, **changes: int) -> BatchShape:
    batch = config.batch
    sizes = {
        "per_device_train_batch_size": batch.per_device_train_batch_size,
        "per_device_eval_batch_size": batch.per_device_eval_batch_size,
    }
    return BatchShape(**{**sizes, **changes}, gradient_accumulation_steps=1)
