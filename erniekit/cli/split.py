"""`erniekit split`: the weights of a model in files of another size."""

HELP = "the weights of a model in files of at most max_shard_size, unchanged"
USAGE = """usage: erniekit split MODEL|CONFIG [max_shard_size=5] [key=value ...]

MODEL and CONFIG as for export. Writes the model with its weights in files of at most
max_shard_size (a number of GB, or 500MB and the like) to output_dir/split_export; no bit of the
weights changes, and the layout stays.

  erniekit split ./models/large max_shard_size=2
  erniekit split run.yaml max_shard_size=500MB overwrite_output_dir=true"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.target import choose_target

    target = choose_target(argv, "split")
    from erniekit.export.split import split_model
    from erniekit.log import console, logger

    logger.info(f"model: {target.description}")
    folder = split_model(
        target.folder,
        target.output_dir,
        target.overwrite,
        max_shard_size=target.config.export.max_shard_size,
    )
    console.print(str(folder), markup=False)
    return 0
