"""`erniekit eval`: held-out loss, perplexity and token accuracy of a model or a run."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erniekit.train.evaluation import EvaluationResult

HELP = "held-out loss, perplexity and token accuracy of a model or a run"
USAGE = """usage: erniekit eval CONFIG|FOLDER [key=value | --key value | --key=value ...] [--base] [--json]

Evaluates on eval_dataset_path: the best (else the latest) checkpoint when output_dir holds a run,
otherwise model_name_or_path. Of a mixture of experts it also tells what each router does: the largest
load of an expert over the mean, the entropy of the load and of a token's scores (1 is even), dropped
slots, the range of the correction bias, and the two experts that most often go together.

With lora_path=A,B each adapter is evaluated, after the run's own where there is one.

  --base   always model_name_or_path, for the figure before training
  --json   one JSON object on standard output, or one after the other for several adapters

  erniekit eval run.yaml
  erniekit eval run.yaml --base
  erniekit eval run.yaml --base lora_path=./output/one,./output/two"""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.arguments import read_config
    from erniekit.cli.launch import require_paddle
    from erniekit.cli.target import choose_target
    from erniekit.log import logger

    words = [word for word in argv if word not in ("--base", "--json")]
    loaded = read_config(words, "eval") if "--base" in argv else None
    require_paddle()
    from erniekit.checkpoint.sources import locate_adapters
    from erniekit.train.session import eval_session, find_model

    # What is evaluated: its name, and the folder and adapters that it is made of.
    works: list[tuple[str, Path, list[Path]]]
    if loaded is not None:
        config, folder = loaded.config, find_model(loaded.config)
        adapters = locate_adapters(lora_path=config.lora.lora_path)
        works = [(str(adapter), folder, [adapter]) for adapter in adapters]
        works = works or [(config.model.model_name_or_path, folder, [])]
    else:
        target = choose_target(words, "eval")
        config, folder = target.config, target.folder
        beside = [adapter for adapter in target.adapters if adapter != folder]
        works = [(str(adapter), target.model, [adapter]) for adapter in beside]
        if not beside or folder in target.adapters:
            works.insert(0, (target.description, folder, []))
    for name, folder, adapters in works:
        logger.info(f"evaluating {name}")
        result = eval_session(config, folder, adapters)
        _show(result, adapters[0] if adapters else folder, as_json="--json" in argv)
    return 0


def _show(result: "EvaluationResult", folder: Path, *, as_json: bool) -> None:
    import json

    from erniekit.log import console
    from erniekit.train.router_stats import summary, table

    if as_json:
        figures = {key.removeprefix("eval_"): value for key, value in result.metrics().items()}
        shown = {"model": str(folder), **figures, **summary(result.routers)}
        console.print_json(json.dumps(shown))
        return
    console.print(result.in_words())
    for line in table(result.routers) if result.routers else ():
        console.print(line, markup=False, highlight=False)
