"""How much a configuration may hold: a few lines of YAML can stand for gigabytes.

An alias (`*a`) repeats what its anchor (`&a`) holds, and aliases of aliases multiply it. Depth and
number of values are counted on the parser's events and nodes, before anything is built from them,
because building (and already composing) what is nested deeply ends in a full stack.
"""

from typing import Any

import yaml

from erniekit.errors import ConfigError

MAX_BYTES = 1_000_000
MAX_DEPTH = 50
MAX_VALUES = 100_000
# A text of this many characters counts as one value more, so that no alias multiplies a long text.
_CHARACTERS = 100


def check_nesting(text: str, place: str, loader: Any) -> None:
    """Refuse YAML that is nested more than MAX_DEPTH deep.

    Raises:
        ConfigError: it is; names line and column.
        yaml.YAMLError: the text is no YAML.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=loader):
            if isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            elif isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > MAX_DEPTH:
                    raise _too_deep_at(place, event.start_mark)
    except yaml.MarkedYAMLError as error:
        # Newer parsers have a limit of their own, and meet it while they look ahead for the next event.
        if "nesting depth" not in str(error.problem):
            raise
        raise _too_deep_at(place, error.problem_mark) from error


def _too_deep_at(place: str, mark: Any) -> ConfigError:
    return ConfigError(f"{place}:{mark.line + 1}:{mark.column + 1}: {_TOO_DEEP}")


_TOO_DEEP = f"values are nested more than {MAX_DEPTH} deep; a configuration is flat"
_TOO_MANY = (
    f"the file stands for more than {MAX_VALUES:,} values (an alias *name counts as all that it repeats); "
    "a configuration is short, and data belongs in data files"
)


def check_nodes(root: yaml.Node, place: str) -> None:
    """Refuse aliases that stand for too much, or for what holds them.

    Raises:
        ConfigError: names line and column of the node.
    """
    # id of a node -> (values it stands for, levels below it), or None while inside of it.
    known: dict[int, tuple[int, int] | None] = {}

    def measure(node: yaml.Node, level: int) -> tuple[int, int]:
        at = f"{place}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"
        if id(node) in known:
            size = known[id(node)]
            if size is None:
                raise ConfigError(
                    f"{at}: an alias repeats what it stands in, without end; write the value out"
                )
        elif isinstance(node, yaml.ScalarNode):
            size = (1 + len(node.value) // _CHARACTERS, 0)
        else:
            known[id(node)] = None
            values, below = 1, 0
            for child in _children(node):
                inner, levels = measure(child, level + 1)
                values, below = values + inner, max(below, levels + 1)
                if values > MAX_VALUES:
                    raise ConfigError(f"{at}: {_TOO_MANY}")
            size = (values, below)
        if level + size[1] > MAX_DEPTH:
            raise ConfigError(f"{at}: {_TOO_DEEP}")
        known[id(node)] = size
        return size

    measure(root, 1)


def check_depth(value: Any, place: str) -> None:
    """Refuse a value from JSON that is nested more than MAX_DEPTH deep.

    Raises:
        ConfigError: it is.
    """
    layer, depth = [value], 0
    while layer := [item for item in layer if isinstance(item, dict | list)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ConfigError(f"{place}: {_TOO_DEEP}")
        layer = [part for item in layer for part in (item.values() if isinstance(item, dict) else item)]


def too_deep(place: str) -> ConfigError:
    """The error for what a parser itself could not follow."""
    return ConfigError(f"{place}: {_TOO_DEEP}")


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value)
