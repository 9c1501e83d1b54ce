"""Which model a command is about.

`generate`, `chat`, `export` and `split` take, as their first word, a configuration, a model folder,
a training output folder, `starter`, or a hub id. A training output folder means its best
checkpoint, else its latest; so does a configuration whose output_dir holds one, unless the
command line names another model. The choice is always told.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniekit.errors import ConfigError

if TYPE_CHECKING:
    from erniekit.config.config import Config
    from erniekit.config.load import LoadedConfig
    from erniekit.generate.text import TextGenerator

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
RUN_CONFIG = "erniekit.yaml"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Target:
    """A model folder, why it is this one, and the configuration to use it with.

    Attributes:
        output_dir: the run's folder, or what the configuration names.
        adapters: the folder itself if it is one, then those of lora_path.
        overwrite: whether what lies in the way may be replaced.
    """

    folder: Path
    description: str
    config: "Config"
    output_dir: Path
    overwrite: bool = False
    adapters: tuple[Path, ...] = ()

    @property
    def model(self) -> Path:
        """The folder of the model that the adapters are for."""
        from erniekit.checkpoint.sources import base_folder

        return base_folder(self.folder) if self.folder in self.adapters else self.folder

    def one_adapter(self, use: str) -> Path | None:
        """The adapter, if there is one.

        Raises:
            ConfigError: there are several, and `use` is for one.
        """
        if len(self.adapters) > 1:
            names = ", ".join(str(folder) for folder in self.adapters)
            raise ConfigError(
                f"lora_path: there are {len(self.adapters)} adapters ({names}), and one {use}; name the "
                "model and one adapter: MODEL lora_path=ADAPTER"
            )
        return self.adapters[0] if self.adapters else None

    def generation_defaults(self) -> dict[str, Any]:
        """Content of the model's generation_config.json; of an adapter without one, its base's."""
        from erniekit.checkpoint.sources import companions_folder
        from erniekit.generate.text import read_generation_defaults

        return read_generation_defaults(companions_folder(self.folder))


def choose_target(argv: list[str], verb: str) -> Target:
    """Find the model that the words of a command name.

    Raises:
        ConfigError: no model is named, or the configuration is wrong.
        CheckpointError: there is no such model.
    """
    from erniekit.config.overrides import is_override

    if not argv:
        needs = "a configuration, a model folder, or starter"
        raise ConfigError(f"erniekit {verb} needs {needs}: erniekit {verb} --help")
    folder = Path(argv[0]).expanduser()
    if folder.is_file() or argv[0].endswith(CONFIG_SUFFIXES) or is_override(argv[0]):
        return _of_config(argv, verb)
    return _of_model(folder, argv, verb)


def _of_config(argv: list[str], verb: str) -> Target:
    """The checkpoint in output_dir if there is one, unless the command line names a model."""
    from erniekit.checkpoint.store import CheckpointStore
    from erniekit.cli.arguments import read_config

    loaded = read_config(argv, verb)
    config = loaded.config
    output_dir = Path(config.run.output_dir)
    named = config.model.model_name_or_path
    if not _is_of_command_line(loaded, "model_name_or_path"):
        store = CheckpointStore(output_dir, save_total_limit=None)
        if store.latest() is not None:
            named = str(output_dir)
    folder, description = _locate(named, config)
    overwrite = config.run.overwrite_output_dir
    return Target(folder, description, config, output_dir, overwrite, _adapters(folder, loaded))


def _of_model(folder: Path, argv: list[str], verb: str) -> Target:
    """The model itself, used with the settings of the run that made it (its chat template, say)."""
    from erniekit.cli.arguments import read_config

    run_folder = _run_folder(folder)
    named = f"model_name_or_path={argv[0]}"
    words = [named, *argv[1:]]
    if run_folder is not None and (run_folder / RUN_CONFIG).is_file():
        words = [str(run_folder / RUN_CONFIG), *words]
    loaded = read_config(words, verb)
    chosen, description = _locate(argv[0], loaded.config)
    output_dir = Path(loaded.config.run.output_dir)
    if run_folder is not None and not _is_of_command_line(loaded, "output_dir"):
        # The run may have been started, or may since have been moved, elsewhere.
        output_dir = run_folder
    # That a run was allowed to overwrite its folder says nothing about an export of it today.
    overwrite = loaded.config.run.overwrite_output_dir and _is_of_command_line(loaded, "overwrite_output_dir")
    return Target(chosen, description, loaded.config, output_dir, overwrite, _adapters(chosen, loaded))


def _adapters(folder: Path, loaded: "LoadedConfig") -> tuple[Path, ...]:
    """The adapters for a target; the lora_path of a run is what its own adapter began as, and not meant."""
    from erniekit.checkpoint.adapter_files import is_adapter
    from erniekit.checkpoint.sources import locate_adapters

    own = [folder] if is_adapter(folder) else []
    if own and not _is_of_command_line(loaded, "lora_path"):
        return (folder,)
    return tuple(dict.fromkeys([*own, *locate_adapters(lora_path=loaded.config.lora.lora_path)]))


def _is_of_command_line(loaded: "LoadedConfig", key: str) -> bool:
    from erniekit.config.entries import COMMAND_LINE

    return loaded.sources[key].place == COMMAND_LINE


def _run_folder(folder: Path) -> Path | None:
    """The run that a folder is, or is a checkpoint of; None for a model from elsewhere."""
    from erniekit.checkpoint.adapter_files import is_adapter

    if not folder.is_dir():
        return None
    if (folder / "config.json").is_file() or is_adapter(folder):
        return folder.resolve().parent if _CHECKPOINT.fullmatch(folder.resolve().name) else None
    return folder


def _locate(model_name_or_path: str, config: "Config") -> tuple[Path, str]:
    """The model folder, and words for a person: which checkpoint of which run."""
    from erniekit.checkpoint.sources import locate_model

    folder = locate_model(model_name_or_path=model_name_or_path, download_hub=config.model.download_hub)
    return folder, describe(folder, model_name_or_path)


def describe(folder: Path, named: str) -> str:
    """Words for the chosen folder: `step 200 (best) of ./output`, or the model as it was named."""
    match = _CHECKPOINT.fullmatch(folder.name)
    if match is None:
        return named if str(folder) == named else f"{named} ({folder})"
    run = folder.parent
    pointers = [name for name in ("best", "latest") if _pointed(run / name) == folder.name]
    which = f" ({', '.join(pointers)})" if pointers else ""
    return f"step {match[1]}{which} of {run}"


def open_generator(target: Target) -> "TextGenerator":
    """Load a target's model, tokenizer and template, ready to answer; needs Paddle."""
    from erniekit import assemble
    from erniekit.checkpoint.sources import companions_folder
    from erniekit.cli.switch import AdapterSwitch
    from erniekit.data.template import load_template
    from erniekit.data.tokenizer import load_tokenizer
    from erniekit.generate.ends import end_token_ids
    from erniekit.generate.text import TextGenerator, read_generation_defaults

    config = target.config
    run = config.run
    assemble.set_device(device=run.device, seed=run.seed, kernels=run.kernels)
    companions = companions_folder(target.folder)
    tokenizer = load_tokenizer(Path(config.model.tokenizer) if config.model.tokenizer else companions)
    template = load_template(tokenizer, chat_template=config.sequences.chat_template)
    built = assemble.load_for_inference(target.model, target.adapters, compute_type=config.model.compute_type)
    defaults = read_generation_defaults(companions)
    generator = TextGenerator(
        built.model,
        tokenizer,
        template,
        end_ids=end_token_ids(defaults, built.config, tokenizer, template),
        max_context=built.config.max_position_embeddings,
    )
    if built.adapter is not None:
        generator.adapters = AdapterSwitch(built, target.adapters)
    return generator


def _pointed(pointer: Path) -> str | None:
    return pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
