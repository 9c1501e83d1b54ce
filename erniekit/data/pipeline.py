"""From a configuration's words to data sets, loaders and batches."""

from collections.abc import Iterator, Mapping, Sequence

from erniekit.data.formats import choose_format
from erniekit.data.loader import Loader
from erniekit.data.mix import parse_shares
from erniekit.data.pack import Batch, BatchShape, Pack, collate, pack
from erniekit.data.reader import SampleReader
from erniekit.data.rows import BadRow, Rows
from erniekit.data.sets import DataSet, EvalSamples, TrainSamples
from erniekit.data.sources import open_rows
from erniekit.errors import ConfigError, DataError
from erniekit.log import logger

_ROWS_TO_GUESS = 100


def open_train_samples(
    reader: SampleReader,
    seed: int,
    *,
    train_dataset_path: str | None,
    train_dataset_type: str | None,
    train_dataset_prob: str | None,
    mix_strategy: str,
    num_samples_each_epoch: int | None,
    random_shuffle: bool,
    max_estimate_samples: int,
) -> TrainSamples:
    """The training set of a configuration; paths, types and shares may be comma lists.

    Raises:
        ConfigError: the lists do not fit each other.
        DataError: a file is missing, empty or of no known format.
    """
    if not train_dataset_path:
        raise ConfigError(
            "train_dataset_path is missing: name a file, a folder, a glob or a comma list of them"
        )
    sets = open_sets(train_dataset_path, train_dataset_type, reader.stage, "train")
    shares = parse_shares(train_dataset_prob, len(sets), "train_dataset_prob")
    return TrainSamples(
        reader,
        sets,
        shares,
        seed=seed,
        mix_strategy=mix_strategy,
        num_samples_each_epoch=num_samples_each_epoch,
        random_shuffle=random_shuffle,
        max_estimate_samples=max_estimate_samples,
    )


def open_eval_samples(
    reader: SampleReader,
    *,
    eval_dataset_path: str | None,
    eval_dataset_type: str | None,
    eval_dataset_prob: str | None,
) -> EvalSamples:
    """The held-out set of a configuration; shares have no meaning for it and are only checked."""
    if not eval_dataset_path:
        raise ConfigError(
            "eval_dataset_path is missing: name a file, a folder, a glob or a comma list of them"
        )
    sets = open_sets(eval_dataset_path, eval_dataset_type, reader.stage, "eval")
    shares = parse_shares(eval_dataset_prob, len(sets), "eval_dataset_prob")
    if shares is not None and len(set(shares)) > 1:
        logger.warning("eval_dataset_prob changes nothing: every held-out sample is evaluated once")
    return EvalSamples(reader, sets)


def open_sets(paths: str, kinds: str | None, stage: str, what: str) -> list[DataSet]:
    """The data sets of a comma list of paths and of types (one type may serve all)."""
    names = [part.strip() for part in paths.split(",") if part.strip()]
    if not names:
        raise ConfigError(f"{what}_dataset_path: {paths!r} names nothing; write a file, a folder or a glob")
    types: list[str | None] = [part.strip() for part in kinds.split(",")] if kinds else [None]
    if len(types) == 1:
        types = types * len(names)
    if len(types) != len(names):
        raise ConfigError(
            f"{what}_dataset_type has {len(types)} entries and {what}_dataset_path {len(names)}; "
            "write one each"
        )
    sets = []
    for name, kind in zip(names, types, strict=True):
        files = open_rows(name)
        sets.append(DataSet(name, [_format_of(rows, kind, stage, what) for rows in files], files))
    return sets


def _format_of(rows: Rows, kind: str | None, stage: str, what: str) -> str:
    """The format of a file, by what is named or by the first of its rows that is one."""
    place = next(
        (place for place in range(min(len(rows), _ROWS_TO_GUESS)) if isinstance(rows.row(place), Mapping)), 0
    )
    first = rows.row(place)
    if isinstance(first, BadRow) and kind is None and stage != "PT":
        raise DataError(f"{rows.origin(place)}: {first.reason}")
    key = f"{what}_dataset_type"
    return choose_format(kind, first, origin=rows.origin(place), stage=stage, key=key)


def build_loader(
    samples: TrainSamples,
    shape: BatchShape,
    seed: int,
    num_replicas: int = 1,
    num_parts: int = 1,
    *,
    max_seq_len: int,
    packing: bool,
    buffer_size: int,
    pad_to_max_seqlen: bool,
    dataloader_num_workers: int,
) -> Loader:
    """The loader of a configuration, of which `num_replicas` processes share the micro-batches of a step.

    `num_parts` processes share the columns of rows.
    """
    return Loader(
        samples,
        shape,
        seed,
        num_replicas=num_replicas,
        num_parts=num_parts,
        max_seq_len=max_seq_len,
        packing=packing,
        buffer_size=buffer_size,
        pad_to_max_seqlen=pad_to_max_seqlen,
        dataloader_num_workers=dataloader_num_workers,
    )


def iterate_eval(
    samples: EvalSamples, shape: BatchShape, num_parts: int = 1, *, max_seq_len: int, packing: bool
) -> Iterator[Batch]:
    """Batches over a held-out set, every sample once, long rows first."""
    found = list(samples.all())
    if not found:
        raise DataError(
            "the held-out set has no sample with a trained token:\n  " + "\n  ".join(samples.report.lines())
        )
    packs: Sequence[Pack]
    packs = (
        pack(found, max_seq_len)
        if packing
        else [(sample,) for sample in sorted(found, key=len, reverse=True)]
    )
    pad_id = samples.reader.tokenizer.pad_id or 0
    size = shape.per_device_eval_batch_size
    for start in range(0, len(packs), size):
        yield collate(
            packs[start : start + size], pad_id=pad_id, vision=samples.reader.vision, num_parts=num_parts
        )
