"""The whole configuration: one attribute for each section, and the table of what is a key."""

import dataclasses
from dataclasses import dataclass
from functools import cache
from typing import Any, get_type_hints

from erniekit.config.batch import Batch
from erniekit.config.eval_data import EvalData
from erniekit.config.evaluation import Evaluation
from erniekit.config.export import Export
from erniekit.config.generation import Generation
from erniekit.config.model import Model
from erniekit.config.optimizer import Optimizer
from erniekit.config.reporting import Reporting
from erniekit.config.run import Run
from erniekit.config.saving import Saving
from erniekit.config.schedule import Schedule
from erniekit.config.sequences import Sequences
from erniekit.config.setting import REQUIRED, About, about
from erniekit.config.train_data import TrainData


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run, frozen; nothing writes to it after loading."""

    model: Model
    run: Run
    train_data: TrainData
    eval_data: EvalData
    sequences: Sequences
    batch: Batch
    optimizer: Optimizer
    schedule: Schedule
    evaluation: Evaluation
    saving: Saving
    reporting: Reporting
    generation: Generation
    export: Export


@dataclass(frozen=True)
class Key:
    """One key: the section it belongs to, its type, its default, and what is known of it."""

    name: str
    section: str
    type: Any
    default: Any
    about: About

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED


@cache
def sections() -> dict[str, type[Any]]:
    """Section classes by their attribute of `Config`."""
    return dict(get_type_hints(Config))


@cache
def known_keys() -> dict[str, Key]:
    """Every implemented key, in the order of the sections."""
    keys: dict[str, Key] = {}
    for section, cls in sections().items():
        types = get_type_hints(cls)
        for field in dataclasses.fields(cls):
            assert field.name not in keys, f"{field.name} is in two sections"
            keys[field.name] = Key(field.name, section, types[field.name], field.default, about(field))
    return keys


def build_config(values: dict[str, Any]) -> Config:
    """A Config from checked values; a key left out gets its default."""
    keys = known_keys()
    grouped: dict[str, dict[str, Any]] = {section: {} for section in sections()}
    for name, value in values.items():
        grouped[keys[name].section][name] = value
    return Config(**{section: cls(**grouped[section]) for section, cls in sections().items()})
