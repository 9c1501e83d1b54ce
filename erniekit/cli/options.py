"""Options of single commands (`--prompt TEXT`, `--raw`), taken out before the configuration is read.

Everything else on a command line is a configuration key; these are not, because they say what to
do now and belong in no file.
"""

from collections.abc import Collection

from erniekit.errors import ConfigError


def take_options(
    argv: list[str], *, valued: Collection[str] = (), flags: Collection[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Part the options of a command from the rest of its words.

    Args:
        valued: options with a value, as `--name value` or `--name=value`.
        flags: options without one; their value in the result is the empty text.

    Returns:
        The options that were given, and the other words in their order.

    Raises:
        ConfigError: an option's value is missing, or it is given twice.
    """
    options: dict[str, str] = {}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name not in valued and word not in flags:
            rest.append(word)
            continue
        if name in options:
            raise ConfigError(f"{name} is given twice")
        if name in valued and not equals:
            following = next(words, None)
            if following is None:
                raise ConfigError(f"{name} needs a value: {name} VALUE or {name}=VALUE")
            value = following
        options[name] = value
    return options, rest
