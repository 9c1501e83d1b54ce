"""From a file and a command line to a frozen Config; every problem is told at once."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from erniekit.config.aliases import expand_aliases
from erniekit.config.coerce import NotBuiltYet, WrongValue, coerce, is_null
from erniekit.config.config import Config, build_config
from erniekit.config.entries import COMMAND_LINE, DEFAULT, Entry, Problem, Source
from erniekit.config.fields import rule_of
from erniekit.config.files import read_file
from erniekit.config.hidden import HIDDEN, is_secret, masked
from erniekit.config.interpolate import interpolate
from erniekit.config.keys import NO_EFFECT, NOT_BUILT, NOTE_PREFIX, declared_keys, upstream_keys
from erniekit.config.overrides import read_overrides
from erniekit.config.parallel_words import words_without_effect
from erniekit.config.resolved import dump
from erniekit.config.rules import NOT_TRAINING, broken_rules, features_not_built, without_effect
from erniekit.config.suggest import nearest_word, suggest
from erniekit.errors import ConfigError, ErnieKitError, UnsupportedError

# Keys whose values only matter to training; other verbs take what this build cannot train.
_TRAINING_KEYS = ("stage", "optim")


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration, and how it came to be.

    Args:
        config: the checked values.
        sources: where the value of each key comes from.
        notices: keys that were accepted without effect, each with its reason.
        notes: the user's own `x-` keys.
    """

    config: Config
    sources: dict[str, Source]
    notices: list[str]
    notes: dict[str, Any]

    def to_yaml(self) -> str:
        """A flat file with every key, which alone repeats the run."""
        return dump(self.config, self.notes)

    def placed(self, error: ErnieKitError) -> ErnieKitError:
        """The error with the place of the key that its message begins with, where the user gave that key.

        For what only a run can find wrong, such as a layer that the model does not have.
        """
        key = str(error).partition(":")[0]
        place = str(self.sources.get(key, DEFAULT))
        return error if place == DEFAULT else type(error)(f"{place}: {error}")


def load_config(path: Path | str, overrides: Sequence[str] = (), *, verb: str) -> LoadedConfig:
    """Read a YAML or JSON file, apply the words of a command line, check everything.

    Raises:
        ConfigError: with all problems, each with its place, what was given and what is allowed.
        UnsupportedError: nothing is wrong, but a feature that is asked for is not built yet.
    """
    entries, problems = read_file(Path(path))
    return _resolve(entries, overrides, problems, verb, Source(str(path), 1, 1))


def load_overrides(overrides: Sequence[str], *, verb: str) -> LoadedConfig:
    """A configuration from the words of a command line alone; errors as `load_config`."""
    return _resolve([], overrides, [], verb, Source(COMMAND_LINE))


def config_from_dict(values: Mapping[str, Any], verb: str = "train") -> LoadedConfig:
    """A configuration from values in memory; errors as `load_config`."""
    source = Source("values")
    entries = [
        Entry(key, value, None if isinstance(value, list | tuple | dict) else str(value), source)
        for key, value in values.items()
    ]
    return _resolve(entries, (), [], verb, source)


def _resolve(
    file_entries: list[Entry], overrides: Sequence[str], problems: list[Problem], verb: str, whole: Source
) -> LoadedConfig:
    command_entries, more = read_overrides(overrides)
    file_layer, file_problems = expand_aliases(file_entries)
    command_layer, command_problems = expand_aliases(command_entries)
    collected = _Collected([*problems, *more, *file_problems, *command_problems])
    entries, unresolved = interpolate(file_layer | command_layer)
    collected.give_up(unresolved)
    for entry in entries.values():
        collected.take(entry, verb)
    config = build_config(collected.values)
    collected.check_together(config, entries, verb, whole)
    collected.raise_problems(whole.place)
    sources = {
        key: entries[key].source if key in collected.values else Source(DEFAULT) for key in declared_keys()
    }
    return LoadedConfig(config, sources, collected.notices(), collected.notes)


class _Collected:
    """Values, notes, problems and missing features, gathered entry by entry."""

    def __init__(self, problems: list[Problem]) -> None:
        self.values: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}
        self.problems = problems
        self.failed: set[str] = set()
        self.features: dict[str, list[Entry]] = {}
        self.without_effect: dict[str, list[str]] = {}

    def give_up(self, problems: Mapping[str, Problem]) -> None:
        """Keys whose values cannot be known."""
        self.problems += problems.values()
        self.failed |= set(problems)

    def take(self, entry: Entry, verb: str) -> None:
        """Sort one entry into what it is: a note, a key, upstream's key, or a mistake."""
        key = entry.key
        if key in self.failed:
            return
        if key.startswith(NOTE_PREFIX):
            self.notes[key] = masked(key, entry.value)
        elif key in declared_keys():
            self._take_declared(entry, verb)
        elif key in upstream_keys():
            self._take_upstream(entry)
        else:
            self._problem(entry, _unknown(entry), entry.source)

    def _take_declared(self, entry: Entry, verb: str) -> None:
        declared = declared_keys()[entry.key]
        if is_null(declared, entry):
            return
        try:
            self.values[entry.key] = coerce(declared, entry)
        except NotBuiltYet as feature:
            if entry.key in _TRAINING_KEYS and verb in NOT_TRAINING:
                self._notice(f"{feature}: not built yet, and not needed by {verb}", entry.key)
            else:
                self.features.setdefault(str(feature), []).append(entry)
        except WrongValue as reason:
            near = nearest_word(entry.shown(), rule_of(declared).choices)
            hint = f" (did you mean {near}?)" if near and len(rule_of(declared).choices) > 1 else ""
            message = f"{entry.written_key}: {entry.shown()} is not allowed: {reason}{hint}"
            self._problem(entry, message, entry.place)

    def _take_upstream(self, entry: Entry) -> None:
        fate = upstream_keys()[entry.key]
        if fate.fate == NO_EFFECT:
            self._notice(fate.detail, entry.key)
        elif fate.fate == NOT_BUILT and not fate.is_harmless(entry.value):
            self.features.setdefault(fate.detail, []).append(entry)

    def check_together(self, config: Config, entries: Mapping[str, Entry], verb: str, whole: Source) -> None:
        """Rules between keys (where each key alone is fine), features, and keys that are missing."""
        for word, reason in words_without_effect(**asdict(config.parallel_words)):
            self._notice(reason, word)
        for key, feature in features_not_built(config):
            self.features.setdefault(feature, []).append(entries[key])
        if self.failed or self.features:
            return  # a rule would speak about a default where the given value could not be read
        for key, declared in declared_keys().items():
            if verb in rule_of(declared).required_by and not self.values.get(key, declared.default):
                self.problems.append(Problem(whole, f"{key}: is missing: {rule_of(declared).help}"))
        written = {key: entry.spelling for key, entry in entries.items() if entry.spelling is not None}
        for key, message in broken_rules(config, verb, written):
            self.problems.append(Problem(entries[key].place if key in entries else whole, message))
        for key, reason in without_effect(config, verb):
            if self.values.get(key, default := declared_keys()[key].default) != default:
                self._notice(reason, key)

    def raise_problems(self, name: str) -> None:
        """Tell everything that is wrong, in the order of the file."""
        wanted = sorted(self.features.items(), key=lambda item: min(entry.place.line for entry in item[1]))
        missing = [_not_built_line(feature, entries) for feature, entries in wanted]
        if self.problems:
            told = sorted(self.problems, key=lambda problem: (problem.source.line, problem.source.column))
            count = len(told)
            head = f"{name}: {count} problem{'s' if count > 1 else ''}"
            raise ConfigError("\n  ".join([head, *map(str, told), *missing]))
        if missing:
            raise UnsupportedError("\n  ".join([f"{name} asks for what is not built yet", *missing]))

    def notices(self) -> list[str]:
        """One line for each reason."""
        return [f"{', '.join(keys)}: {reason}" for reason, keys in self.without_effect.items()]

    def _notice(self, reason: str, key: str) -> None:
        self.without_effect.setdefault(reason, []).append(key)

    def _problem(self, entry: Entry, message: str, place: Source) -> None:
        self.failed.add(entry.key)
        problem = Problem(place, message)
        if problem not in self.problems:  # an alias of two keys would tell it twice
            self.problems.append(problem)


def _not_built_line(feature: str, entries: Sequence[Entry]) -> str:
    entries = sorted(entries, key=lambda entry: entry.place.line)
    asked = ", ".join(f"{entry.written_key}: {entry.shown()}" for entry in entries)
    return f"{entries[0].place}: not built yet: {feature} ({asked})"


def _unknown(entry: Entry) -> str:
    if isinstance(entry.value, dict):
        inner = [key for key in map(str, entry.value) if key in declared_keys() or key in upstream_keys()]
        if inner:
            return f"{entry.key}: sections are not written; put {', '.join(inner[:3])} at the left margin"
    near = suggest(entry.key)
    hint = f"did you mean {near}?" if near else "a key of your own may be called x-" + entry.key
    shown = HIDDEN if near and is_secret(near) else entry.shown()
    return f"{entry.key}: {shown}: there is no such key; {hint}"
