"""`erniekit eval`: held-out loss, perplexity and token accuracy of a model or a run."""

HELP = "held-out loss, perplexity and token accuracy of a model or a run"
USAGE = """usage: erniekit eval CONFIG|FOLDER [key=value | --key value | --key=value ...] [--base] [--json]

Evaluates on eval_dataset_path: the best (else the latest) checkpoint when output_dir holds a run,
otherwise model_name_or_path. Of a mixture of experts it also tells what each router does: the largest
load of an expert over the mean, the entropy of the load and of a token's scores (1 is even), dropped
slots, the range of the correction bias, and the two experts that most often go together.

  --base   always model_name_or_path, for the figure before training
  --json   one JSON object on standard output

  erniekit eval run.yaml
  erniekit eval run.yaml --base"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    import json

    from erniekit.cli.arguments import read_config
    from erniekit.cli.launch import require_paddle
    from erniekit.cli.target import choose_target
    from erniekit.log import console, logger

    words = [word for word in argv if word not in ("--base", "--json")]
    loaded = read_config(words, "eval") if "--base" in argv else None
    require_paddle()
    from erniekit.train.router_stats import summary, table
    from erniekit.train.session import eval_session, find_model

    if loaded is not None:
        config, folder = loaded.config, find_model(loaded.config)
        description = config.model.model_name_or_path
    else:
        target = choose_target(words, "eval")
        config, folder, description = target.config, target.folder, target.description
    logger.info(f"evaluating {description}")
    result = eval_session(config, folder)
    if "--json" in argv:
        figures = {key.removeprefix("eval_"): value for key, value in result.metrics().items()}
        console.print_json(json.dumps({"model": str(folder), **figures, **summary(result.routers)}))
    else:
        console.print(
            f"held-out loss {result.loss:.4f}, perplexity {result.perplexity:.3f}, token accuracy "
            f"{result.accuracy:.1%} over {result.num_tokens} tokens"
        )
        for line in table(result.routers) if result.routers else ():
            console.print(line, markup=False, highlight=False)
    return 0
