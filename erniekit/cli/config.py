"""`erniekit config`: check a configuration, show it resolved, or print the reference of all keys."""

from collections.abc import Sequence

from erniekit.config.entries import DEFAULT
from erniekit.config.load import LoadedConfig
from erniekit.errors import ConfigError

HELP = "check a configuration, show it resolved, or print the reference"
USAGE = """usage: erniekit config check CONFIG... [key=value ...]
       erniekit config show CONFIG [key=value ...] [--yaml] [--changed]
       erniekit config reference

check      says whether each CONFIG is right; all problems of a file are told together
show       the value of every key and where it comes from (file:line:column, command line, default)
             --changed  only what differs from the defaults
             --yaml     as a file that alone repeats the run
reference  the reference of all keys, as Markdown (docs/configuration.md)

  erniekit config check examples/configs/*/sft/*.yaml
  erniekit config show run.yaml learning_rate=1e-5 --changed

Exit codes: 0 right, 2 something is wrong or not built yet."""


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.config.suggest import nearest_word

    actions = {"check": _check, "show": _show, "reference": _reference}
    if not argv or argv[0] not in actions:
        near = nearest_word(argv[0], actions) if argv else None
        hint = f"did you mean {near}?" if near else "erniekit config --help tells more"
        given = f", not {argv[0]}" if argv else ""
        raise ConfigError(f"erniekit config needs one of check, show, reference{given}; {hint}")
    return actions[argv[0]](argv[1:])


def _check(argv: list[str]) -> int:
    from erniekit.config.load import load_config
    from erniekit.config.overrides import is_override
    from erniekit.errors import ErnieKitError
    from erniekit.log import console, logger

    paths = []
    while argv and not is_override(argv[0]):
        paths.append(argv.pop(0))
    if not paths:
        raise ConfigError("erniekit config check needs a file: erniekit config check CONFIG")
    worst = 0
    for path in paths:
        try:
            loaded = load_config(path, argv, verb="check")
        except ErnieKitError as error:
            logger.error(str(error))
            worst = max(worst, error.exit_code)
            continue
        console.print(f"{path}: right", markup=False)
        for notice in loaded.notices:
            console.print(f"  without effect: {notice}", markup=False)
    return worst


def _show(argv: list[str]) -> int:
    from erniekit.cli.arguments import read_config
    from erniekit.cli.options import take_options
    from erniekit.log import console

    options, words = take_options(argv, flags=("--yaml", "--changed"))
    if not words:
        raise ConfigError("erniekit config show needs a file: erniekit config show CONFIG")
    loaded = read_config(words, "show")
    changed = "--changed" in options
    if "--yaml" in options and not changed:
        console.print(loaded.to_yaml(), markup=False, end="")
    else:
        lines = _lines(loaded, changed=changed, sources="--yaml" not in options)
        for line in lines:
            console.print(line, markup=False)
    return 0


def _lines(loaded: LoadedConfig, *, changed: bool, sources: bool) -> Sequence[str]:
    """`key: value   # source` for each key, in columns."""
    from erniekit.config.keys import declared_keys
    from erniekit.config.resolved import dump_item

    rows = []
    for key, value in loaded.config.values().items():
        if changed and value == declared_keys()[key].default:
            continue
        rows.append((dump_item(key, value), str(loaded.sources[key])))
    if not sources:
        return [item for item, _ in rows]
    width = min(48, max((len(item) for item, source in rows if source != DEFAULT), default=40))
    return [f"{item:<{width}}  # {source}" for item, source in rows]


def _reference(argv: list[str]) -> int:
    from erniekit.config.reference import write_reference
    from erniekit.log import console

    if argv:
        raise ConfigError(f"erniekit config reference takes no words, and {argv[0]} was given")
    console.print(write_reference(), markup=False, end="")
    return 0
