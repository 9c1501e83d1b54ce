"""The plan of a run over several processes: made, checked and told before its model is built."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from erniekit import assemble
from erniekit.config.config import Config
from erniekit.data.report import DataReport
from erniekit.errors import UnsupportedError
from erniekit.estimate.asked import asked_model, asked_pipelining, asked_workload, check_fit, spread_of
from erniekit.estimate.machines import MACHINES, Machine
from erniekit.estimate.parallel import Estimate
from erniekit.estimate.plan_words import lines
from erniekit.estimate.plans import Model, Pipelining, automatic, choose_cut, make_plan, remedies
from erniekit.estimate.recompute import SHARE_OF_FREE, limit_in_bytes
from erniekit.estimate.state import gigabytes
from erniekit.log import logger
from erniekit.ops.backend import current_backend, on_cpu
from erniekit.parallel import comm
from erniekit.parallel.layout import Layout
from erniekit.parallel.schedule import Schedule
from erniekit.parallel.stages import Stages
from erniekit.train.devices import free_memory

_STATE = ("weights", "gradients", "optimizer")


@dataclass(frozen=True)
class RunPlan:
    """What the processes of a run hold, send and take.

    schedule: of a whole step. stages: the blocks of each. estimate: as of `erniekit plan`.
    """

    model: Model
    pipelining: Pipelining
    schedule: Schedule
    stages: Stages
    estimate: Estimate

    @property
    def places(self) -> tuple[tuple[int, ...], ...]:
        """The stages of each rank."""
        return self.schedule.places

    @property
    def is_cut(self) -> bool:
        """Whether the model lies in stages."""
        return self.schedule.num_ranks > 1

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of the process that needs most, by cause."""
        return self.estimate.ranks[self.estimate.worst].memory


def plan_run(
    config: Config,
    numbers: Any,
    layout: Layout,
    report: DataReport | None = None,
    machine: Machine | None = None,
    **known: Any,
) -> RunPlan:
    """The plan of a run, the same in all of its processes.

    Args:
        numbers: of the model, as its folder says.
        report: of the data; without it rows are full, of one sample each.
        known: fields of the workload of which more is known.
        machine: of each process; without it one of which nothing is known here but its kind.

    Raises:
        ConfigError: the layout, the cut or the schedule does not fit the model or the micro-batches of a
            step, or `recompute: auto` finds nothing that fits.
    """
    check_fit(config, numbers, layout)
    machine = machine or MACHINES["cpu" if on_cpu() else "H800"]
    model, pipelining = asked_model(config, numbers), asked_pipelining(config)
    known = {
        "compute_type": assemble.number_types(config.model.compute_type)[0],
        "native": current_backend() == "native",
        **({} if report is None else _of_data(config, report)),
        **known,
    }
    workload = asked_workload(config, model.numbers, machine, **known)
    spread = spread_of(config, layout)
    estimate = make_plan(model, spread, workload, machine, pipelining)
    if config.recompute.recompute == "auto":
        estimate = automatic(model, estimate, pipelining)
    # What is recomputed may move the cut.
    schedule, stages = choose_cut(model, spread, estimate.workload, machine, pipelining)
    return RunPlan(model, pipelining, schedule, stages, estimate)


def _of_data(config: Config, report: DataReport) -> dict[str, Any]:
    sequences, sparse = config.sequences, config.model.use_sparse_head_and_loss_fn
    seq_len = sequences.max_seq_len if sequences.packing else max(report.lengths, default=1)
    return {
        "seq_len": seq_len,
        "attended": min(report.typical_length, seq_len),
        "labelled_share": report.trained_share if sparse else 1.0,
    }


def machine_of(config: Config, world: comm.Group, device: str) -> Machine:
    """What each process of a run may use; all of them call it, and get the same.

    Args:
        device: Paddle's name of it.
    """
    kind = MACHINES["cpu" if on_cpu() else "H800"]
    told = comm.gather_objects((socket.gethostname(), os.getpid(), free_memory(device)), world)
    hosts = [host for host, _, _ in told]
    free = min(free // (hosts.count(host) if kind.on_cpu else 1) for host, _, free in told)
    limit = config.recompute.memory_limit_gb
    if config.recompute.recompute == "auto" and limit is not None:
        free = int(limit_in_bytes(free, memory_limit_gb=limit) / SHARE_OF_FREE)
    return kind.changed(memory=free)


def check_plan(plan: RunPlan, *, tells: bool) -> None:
    """Tell a plan, and what would make it fit where it does not; told once, by who `tells`.

    Raises:
        UnsupportedError: what a process holds throughout is more than it may have.
    """
    estimate = plan.estimate
    for line in _told(plan) if tells else ():
        logger.info(line)
    if estimate.fits:
        return
    changes = [words for words, _ in remedies(plan.model, estimate, plan.pipelining)]
    advice = f"it fits with {'; or with '.join(changes)}" if changes else "erniekit plan search names others"
    state = sum(plan.memory.get(cause, 0) for cause in _STATE)
    if state > estimate.machine.memory:
        raise UnsupportedError(
            f"a process of pipeline rank {estimate.worst} holds {gigabytes(state)} ({', '.join(_STATE)}) "
            f"and activations, and {gigabytes(estimate.machine.memory)} are free for each: {advice}"
        )
    if tells:
        logger.warning(f"the plan is estimated not to fit: {advice}")


def _told(plan: RunPlan) -> Iterator[str]:
    yield "plan, before anything is built (erniekit plan prints it without running):"
    yield from (line for line in lines(plan.estimate) if line)
