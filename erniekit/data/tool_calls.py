"""Definitions of tools, and calls against them: in training data, and in what a model answers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from erniekit.errors import DataError

_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


def read_tools(path: Path) -> list[Any]:
    """The definitions of tools in a JSON file: a list, or the one of a single tool.

    Raises:
        DataError: it cannot be read, or a definition has no name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    tools = content if isinstance(content, list) else [content]
    if not tools:
        raise DataError(f"{path}: holds no tool")
    for number, tool in enumerate(tools, start=1):
        if not isinstance(_function(tool).get("name"), str):
            raise DataError(
                f"{path}: tool {number} has no name; write "
                '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}'
            )
    return tools


def check_call(name: str, arguments: Any, tools: Sequence[Any]) -> str | None:
    """What is wrong with a call of one of `tools`, or None.

    The name must be known, required arguments present, and arguments of the types that are declared.
    """
    functions = {f["name"]: f for f in map(_function, tools) if "name" in f}
    if name not in functions:
        return f"there is no tool {name!r}; there are {', '.join(functions) or 'none'}"
    if not isinstance(arguments, Mapping):
        return f"{name}: arguments are {type(arguments).__name__}, not an object"
    parameters = functions[name].get("parameters") or {}
    declared = parameters.get("properties") or {}
    missing = [key for key in parameters.get("required") or () if key not in arguments]
    if missing:
        return f"{name} lacks {', '.join(missing)}"
    for key, value in arguments.items():
        if key not in declared:
            if parameters.get("additionalProperties") is False:
                return f"{name} has no argument {key!r}"
            continue
        schema = declared[key] if isinstance(declared[key], Mapping) else {}
        wanted = schema.get("type")
        if wanted is not None and not _has_type(value, wanted):
            return f"{name}: {key} is {type(value).__name__}, not {wanted}"
        if "enum" in schema and value not in schema["enum"]:
            return f"{name}: {key} is {value!r}, not one of {schema['enum']}"
    return None


def _function(tool: Any) -> Mapping[str, Any]:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    return function if isinstance(function, Mapping) else {}


def _has_type(value: Any, wanted: str | Sequence[str]) -> bool:
    names = [wanted] if isinstance(wanted, str) else wanted
    for name in names:
        types = _JSON_TYPES.get(name)
        if types is None:  # a type that we do not know is nobody's mistake
            return True
        if isinstance(value, types) and not (isinstance(value, bool) and name in ("integer", "number")):
            return True
        if name == "integer" and isinstance(value, float) and value.is_integer():
            return True
    return False
