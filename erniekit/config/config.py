"""The configuration: one frozen section for each part of ErnieKit."""

from dataclasses import dataclass, field, fields
from typing import Any

from erniekit.config.batch import Batch
from erniekit.config.eval_data import EvalData
from erniekit.config.evaluation import Evaluation
from erniekit.config.export import Export
from erniekit.config.generation import Generation
from erniekit.config.lora import Lora
from erniekit.config.low_precision import LowPrecision
from erniekit.config.model import Model
from erniekit.config.optimizer import Optimizer
from erniekit.config.parallel import Parallel
from erniekit.config.parallel_words import ParallelWords
from erniekit.config.pipelining import Pipelining
from erniekit.config.preference import Preference
from erniekit.config.qat import Qat
from erniekit.config.quantize import Quantize
from erniekit.config.recompute import Recompute
from erniekit.config.reporting import Reporting
from erniekit.config.routing import Routing
from erniekit.config.run import Run
from erniekit.config.saving import Saving
from erniekit.config.schedule import Schedule
from erniekit.config.sequences import Sequences
from erniekit.config.train_data import TrainData

SECTIONS: dict[str, type] = {
    "run": Run,
    "model": Model,
    "lora": Lora,
    "train_data": TrainData,
    "eval_data": EvalData,
    "sequences": Sequences,
    "batch": Batch,
    "optimizer": Optimizer,
    "preference": Preference,
    "routing": Routing,
    "low_precision": LowPrecision,
    "qat": Qat,
    "schedule": Schedule,
    "recompute": Recompute,
    "evaluation": Evaluation,
    "saving": Saving,
    "reporting": Reporting,
    "parallel": Parallel,
    "pipelining": Pipelining,
    "parallel_words": ParallelWords,
    "generation": Generation,
    "export": Export,
    "quantize": Quantize,
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """All sections; each key of a file is a field of exactly one of them."""

    run: Run = field(default_factory=Run)
    model: Model = field(default_factory=Model)
    lora: Lora = field(default_factory=Lora)
    train_data: TrainData = field(default_factory=TrainData)
    eval_data: EvalData = field(default_factory=EvalData)
    sequences: Sequences = field(default_factory=Sequences)
    batch: Batch = field(default_factory=Batch)
    optimizer: Optimizer = field(default_factory=Optimizer)
    preference: Preference = field(default_factory=Preference)
    routing: Routing = field(default_factory=Routing)
    low_precision: LowPrecision = field(default_factory=LowPrecision)
    qat: Qat = field(default_factory=Qat)
    schedule: Schedule = field(default_factory=Schedule)
    recompute: Recompute = field(default_factory=Recompute)
    evaluation: Evaluation = field(default_factory=Evaluation)
    saving: Saving = field(default_factory=Saving)
    reporting: Reporting = field(default_factory=Reporting)
    parallel: Parallel = field(default_factory=Parallel)
    pipelining: Pipelining = field(default_factory=Pipelining)
    parallel_words: ParallelWords = field(default_factory=ParallelWords)
    generation: Generation = field(default_factory=Generation)
    export: Export = field(default_factory=Export)
    quantize: Quantize = field(default_factory=Quantize)

    def values(self) -> dict[str, Any]:
        """All keys, flat, in the order of the sections."""
        return {
            f.name: getattr(getattr(self, section), f.name)
            for section, cls in SECTIONS.items()
            for f in fields(cls)
        }


def build_config(values: dict[str, Any]) -> Config:
    """A Config from flat, checked values; keys that are absent keep their defaults."""
    sections = {
        section: cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        for section, cls in SECTIONS.items()
    }
    return Config(**sections)
