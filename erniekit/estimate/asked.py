"""What a configuration asks for of a run on several devices, read alike by `erniekit plan` and by a run."""

import re
from dataclasses import asdict, replace
from math import prod
from typing import Any

from erniekit.config.config import Config
from erniekit.errors import ConfigError
from erniekit.estimate.adapters import adapter_shapes
from erniekit.estimate.machines import Machine
from erniekit.estimate.plans import Model, Pipelining, choose_pipelining, workload_of
from erniekit.estimate.shares import Spread
from erniekit.estimate.step_time import Workload
from erniekit.parallel.layout import Layout, choose_layout, misfits
from erniekit.quant.schemes import SCHEMES, formats_of

_AXES = ("tensor", "pipeline", "sharding", "context", "expert")


def asked_model(config: Config, numbers: Any) -> Model:
    """The numbers of the model, and what of it is trained.

    Args:
        numbers: as its folder says.
    """
    from erniekit.models.registry import load_family

    ahead = config.model.num_nextn_predict_layers
    numbers = numbers if ahead is None else numbers.with_ahead(ahead)
    family = load_family(numbers)
    shapes, parts = family.weights.memory_shapes(numbers), family.plan
    scheme = config.model.compute_type if config.model.compute_type in SCHEMES else None
    formats = {} if scheme is None else formats_of(shapes, parts.ROLES, scheme)
    stored = {name: chosen.num_bytes(shapes[name]) / prod(shapes[name]) for name, chosen in formats.items()}
    beside = None
    if config.model.fine_tuning == "Full":
        frozen = [re.compile(pattern) for pattern in config.model.freeze]
        trained = {name: not any(pattern.search(name) for pattern in frozen) for name in shapes}
    else:
        lora = config.lora
        beside = adapter_shapes(
            shapes,
            parts,
            lambda parameter, shape: family.names_in_files(parameter, shape, numbers),
            lora_rank=lora.lora_rank,
            lora_target=lora.lora_target,
        )
        whole = [re.compile(pattern) for pattern in lora.lora_modules_to_save]
        trained = {name: any(pattern.search(name) for pattern in whole) for name in shapes}
    trained |= {name: False for name in shapes if name.endswith(parts.UNTRAINED)}
    depths = numbers.num_nextn_predict_layers if _trains_ahead(config) else 0
    return Model(numbers.with_ahead(depths), shapes, parts, trained, beside, stored)


def _trains_ahead(config: Config) -> bool:
    return config.run.stage != "DPO" and config.routing.multi_token_pred_lambda > 0


def asked_spread(config: Config, numbers: Any, num_devices: int | None = None) -> Spread:
    """How the keys spread the run.

    Args:
        numbers: of the model.
        num_devices: processes in all; without it what the degrees need.

    Raises:
        ConfigError: they do not fit each other, the model or the number of devices.
    """
    keys = config.parallel
    given = {f"{axis}_parallel_degree": getattr(keys, f"{axis}_parallel_degree") for axis in _AXES}
    needed = prod(max(1, given[f"{axis}_parallel_degree"]) for axis in _AXES[:-1])
    layout = choose_layout(num_devices or needed, **given, moe_group=keys.moe_group, sharding=keys.sharding)
    check_fit(config, numbers, layout)
    return spread_of(config, layout)


def check_fit(config: Config, numbers: Any, layout: Layout) -> None:
    """Raises ConfigError where a model with these numbers cannot be laid out so, with every reason."""
    sizes = {
        name: value[0] if isinstance(value, tuple) else value
        for name, value in vars(numbers).items()
        if isinstance(value, int | tuple) and value
    }
    known = {"moe_num_experts": 0, "max_seq_len": config.sequences.max_seq_len}
    wrong = misfits(layout, known | sizes)
    if wrong:
        raise ConfigError("; ".join(wrong))


def spread_of(config: Config, layout: Layout) -> Spread:
    """A layout with what else the keys say of it."""
    keys = config.parallel
    return Spread(
        **vars(layout),
        sharding_stage=int(keys.sharding[-1:] or 1),
        sequence_parallel=keys.sequence_parallel and layout.tensor > 1,
    )


def asked_pipelining(config: Config) -> Pipelining:
    """Schedule and cut of a pipeline; those of one stage where there is none."""
    if config.parallel.pipeline_parallel_degree <= 1:
        return Pipelining()
    return choose_pipelining(**asdict(config.pipelining))


def asked_workload(
    config: Config, numbers: Any, machine: Machine, attended: float = float("inf"), **known: Any
) -> Workload:
    """What a process does in a step.

    Args:
        numbers: of the model.
        attended: tokens of the sample that a token belongs to, on average; whole rows without.
        known: fields of which more is known than the configuration says.
    """
    workload = workload_of(config, numbers, on_cpu=machine.on_cpu, attended=attended)
    return replace(workload, **known)
