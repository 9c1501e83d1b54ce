"""`erniekit train`: the whole run of a configuration."""

HELP = "train a model from a configuration (SFT, PT, DPO)"
USAGE = """usage: erniekit train CONFIG [key=value | --key value | --key=value ...]

Trains what CONFIG describes (YAML or JSON), evaluates and saves on the way, and writes report.md.
Starting it again in the same output_dir continues a run that was interrupted.
nproc_per_node=N starts N processes; their logs are in output_dir/logs.

  erniekit train examples/configs/starter/sft/run_sft.yaml
  erniekit train run.yaml learning_rate=1e-5 --max_steps 200
  erniekit train run.yaml overwrite_output_dir=true

Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130/143 interrupted (after saving)."""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.arguments import read_config
    from erniekit.cli.launch import require_paddle, start_ranks

    loaded = read_config(argv, "train")
    code = start_ranks(
        ["train", *argv],
        # What only evaluates is one process.
        nproc_per_node=loaded.config.parallel.nproc_per_node if loaded.config.run.do_train else 1,
        device=loaded.config.run.device,
        output_dir=loaded.config.run.output_dir,
    )
    if code is not None:
        return code
    require_paddle()
    from erniekit.errors import ErnieKitError
    from erniekit.parallel.differentiable import peers_named
    from erniekit.train.session import train_session

    try:
        with peers_named():
            return train_session(loaded)
    except ErnieKitError as error:
        raise loaded.placed(error) from error
