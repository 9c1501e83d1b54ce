"""`erniekit eval`: held-out loss, perplexity and token accuracy of a model."""

HELP = "held-out loss, perplexity and token accuracy of a model or a run"
USAGE = """usage: erniekit eval CONFIG [key=value | --key value | --key=value ...] [--base]

Evaluates on eval_dataset_path: the best (else the latest) checkpoint when output_dir holds a run,
otherwise model_name_or_path. With --base always model_name_or_path.

  erniekit eval run.yaml
  erniekit eval run.yaml --base"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.arguments import read_config
    from erniekit.cli.launch import require_paddle

    base = "--base" in argv
    loaded = read_config([word for word in argv if word != "--base"], "eval")
    require_paddle()
    from erniekit.train.session import eval_session

    return eval_session(loaded, base=base)
