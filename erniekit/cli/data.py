"""`erniekit data preview`: what a configuration trains on, before anything is trained."""

HELP = "look at the samples that a configuration trains on"
USAGE = """usage: erniekit data preview CONFIG|DATA [key=value ...] [-n N] [--eval]

Shows decoded samples with the trained tokens in colour, token counts, the share that is trained on,
a histogram of lengths and the steps of an epoch. Without colour, as in a pipe, [[ ]] stand around what
is trained on. DATA is a file, a folder or a quoted glob. Needs no Paddle.

  -n N     samples to show (3)
  --eval   the held-out set instead

  erniekit data preview run.yaml
  erniekit data preview examples/data/sft-train.jsonl model_name_or_path=starter max_seq_len=512"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.options import take_options
    from erniekit.errors import ConfigError

    options, words = take_options(argv, valued=("-n",), flags=("--eval",))
    if len(words) < 2 or words[0] != "preview":
        raise ConfigError(f"write erniekit data preview CONFIG or DATA\n{USAGE}")
    count = options.get("-n", "3")
    if not count.isdigit():
        raise ConfigError(f"-n: {count!r} is not a number of samples")
    return _preview(_with_data(words[1:]), int(count), held_out="--eval" in options)


def _with_data(words: list[str]) -> list[str]:
    """A data file, folder or glob in place of a configuration becomes the key that names it."""
    from pathlib import Path

    from erniekit.data.sources import SUFFIXES

    given = words[0]
    if given.endswith((".yaml", ".yml")) or "=" in given or _is_config(given):
        return words
    is_folder = Path(given).is_dir() and not (Path(given) / "erniekit.yaml").is_file()
    is_data = is_folder or "*" in given or given.removesuffix(".gz").endswith(SUFFIXES)
    return [f"train_dataset_path={given}", *words[1:]] if is_data else words


def _is_config(path: str) -> bool:
    """A .json file may be data or a configuration; the latter is a mapping that names a model or data."""
    import json
    from pathlib import Path

    if not path.endswith(".json") or not Path(path).is_file():
        return False
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and bool({"model_name_or_path", "train_dataset_path"} & set(content))


def _preview(words: list[str], count: int, *, held_out: bool) -> int:
    from dataclasses import asdict

    from erniekit.checkpoint.sources import locate_model
    from erniekit.cli.arguments import read_config
    from erniekit.data.pack import BatchShape
    from erniekit.data.pipeline import build_loader, open_eval_samples, open_train_samples
    from erniekit.data.reader import READER_KEYS, open_reader
    from erniekit.data.show import length_histogram, sample_text
    from erniekit.log import console
    from erniekit.models.registry import read_vision_tokens

    config = read_config(words, "data").config
    model, sequences, batch = config.model, config.sequences, config.batch
    folder = locate_model(model_name_or_path=model.model_name_or_path, download_hub=model.download_hub)
    reader = open_reader(
        folder,
        config.run.stage,
        read_vision_tokens(folder),
        tokenizer=model.tokenizer,
        **{key: getattr(sequences, key) for key in READER_KEYS},
    )
    if held_out:
        evaluated = open_eval_samples(reader, **asdict(config.eval_data))
        report, shown = evaluated.report, list(evaluated.all())[:count]
    else:
        samples = open_train_samples(reader, config.run.seed, **asdict(config.train_data))
        report, shown = samples.report, samples.first_samples(count)
    for sample in shown:
        # Without colour (a pipe, a file, NO_COLOR) the mask is shown by brackets.
        colours = console.is_terminal and not console.no_color
        console.print(sample_text(sample, reader.tokenizer, most_tokens=400, colours=colours))
        console.print()
    for line in report.lines():
        console.print(line, markup=False)
    for line in length_histogram(report.lengths):
        console.print(line, markup=False)
    if held_out:
        return 0
    shape = BatchShape(
        per_device_train_batch_size=batch.per_device_train_batch_size,
        per_device_eval_batch_size=batch.per_device_eval_batch_size,
        gradient_accumulation_steps=batch.gradient_accumulation_steps,
    )
    loader = build_loader(
        samples,
        shape,
        config.run.seed,
        max_seq_len=sequences.max_seq_len,
        packing=sequences.packing,
        buffer_size=sequences.buffer_size,
        pad_to_max_seqlen=sequences.pad_to_max_seqlen,
        dataloader_num_workers=0,
    )
    packed = f"packed to {loader.fill_rate:.0%}" if sequences.packing else "one sample a sequence"
    console.print(
        f"an epoch: {loader.steps_per_epoch} steps of {batch.per_device_train_batch_size} x "
        f"{batch.gradient_accumulation_steps} sequences of at most {sequences.max_seq_len} tokens, {packed}"
    )
    return 0
