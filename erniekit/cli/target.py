"""Which model a command is about.

`generate`, `chat`, `export` and `split` take, as their first word, a configuration, a model folder,
a training output folder, `starter`, or a hub id. A training output folder means its best
checkpoint, else its latest; so does a configuration whose output_dir holds one, unless the
command line names another model. The choice is always told.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from erniekit.errors import ConfigError

if TYPE_CHECKING:
    from erniekit.config.config import Config
    from erniekit.generate.text import TextGenerator

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
RUN_CONFIG = "erniekit.yaml"


@dataclass(frozen=True)
class Target:
    """A model folder, why it is this one, and the configuration to use it with."""

    folder: Path
    description: str
    config: "Config"
    output_dir: Path


def choose_target(argv: list[str], verb: str) -> Target:
    """Find the model that the words of a command name.

    Raises:
        ConfigError: no model is named, or the configuration is wrong.
        CheckpointError: there is no such model.
    """
    from erniekit.cli.arguments import read_config

    if not argv:
        raise ConfigError(
            f"erniekit {verb} needs a configuration, a model folder, or starter: erniekit {verb} --help"
        )
    first, rest = argv[0], argv[1:]
    if first.endswith(CONFIG_SUFFIXES) or "=" in first or first.startswith("--"):
        return _of_config(argv, verb)
    folder = Path(first)
    run_config = _run_config(folder)
    named = f"model_name_or_path={first}"
    # A setting of the run is worth keeping (its chat template, say), but the model is the one named here.
    words = [str(run_config), named, *rest] if run_config else [named, *rest]
    loaded = read_config(words, verb)
    chosen, description = _locate(first, loaded.config)
    run_folder = folder if folder.is_dir() and chosen.resolve() != folder.resolve() else None
    output_dir = run_folder or Path(loaded.config.run.output_dir)
    return Target(chosen, description, loaded.config, output_dir)


def _of_config(argv: list[str], verb: str) -> Target:
    from erniekit.cli.arguments import read_config

    from erniekit.checkpoint.store import CheckpointStore

    loaded = read_config(argv, verb)
    config = loaded.config
    output_dir = Path(config.run.output_dir)
    source = loaded.sources.get("model_name_or_path")
    named_here = source is not None and "command line" in str(source)
    if not named_here and output_dir.is_dir():
        store = CheckpointStore(output_dir, save_total_limit=None)
        if store.latest() is not None:
            folder, description = _locate(str(output_dir), config)
            return Target(folder, description, config, output_dir)
    folder, description = _locate(config.model.model_name_or_path, config)
    return Target(folder, description, config, output_dir)


def _locate(model_name_or_path: str, config: "Config") -> tuple[Path, str]:
    """The model folder, and words for a person: which checkpoint of which run."""
    from erniekit.checkpoint.sources import locate_model

    folder = locate_model(model_name_or_path=model_name_or_path, download_hub=config.model.download_hub)
    return folder, describe(folder, model_name_or_path)


def describe(folder: Path, named: str) -> str:
    """Words for the chosen folder: `step 200 (best) of ./output`, or the model as it was named."""
    step = folder.name.removeprefix("checkpoint-")
    if step == folder.name or not step.isdigit():
        return named if str(folder) == named else f"{named} ({folder})"
    run = folder.parent
    pointers = [name for name in ("best", "latest") if _pointed(run / name) == folder.name]
    which = f" ({', '.join(pointers)})" if pointers else ""
    return f"step {step}{which} of {run}"


def open_generator(target: Target) -> "TextGenerator":
    """Load a target's model, tokenizer and template, ready to answer; needs Paddle."""
    from erniekit import assemble
    from erniekit.data.template import load_template
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.generate.ends import end_token_ids
    from erniekit.generate.text import TextGenerator, read_generation_defaults

    config = target.config
    assemble.set_device(device=config.run.device, seed=config.run.seed)
    tokenizer = load_tokenizer(Path(config.model.tokenizer) if config.model.tokenizer else target.folder)
    template = load_template(tokenizer, chat_template=config.sequences.chat_template)
    built = assemble.load_for_inference(target.folder, compute_type=config.model.compute_type)
    defaults = read_generation_defaults(target.folder)
    return TextGenerator(
        built.model,
        tokenizer,
        template,
        end_ids=end_token_ids(defaults, built.config, tokenizer, template),
        max_context=built.config.max_position_embeddings,
    )


def _run_config(folder: Path) -> Path | None:
    """The configuration of the run that a folder (or the one above it) belongs to."""
    for place in (folder, folder.parent):
        if folder.is_dir() and (place / RUN_CONFIG).is_file():
            return place / RUN_CONFIG
    return None


def _pointed(pointer: Path) -> str | None:
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
