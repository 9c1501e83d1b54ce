"""Plans of a run: from the words of a configuration to estimates, what to change, and the best of many."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from typing import Any

from erniekit.config.config import Config
from erniekit.errors import ConfigError
from erniekit.estimate.machines import Machine
from erniekit.estimate.parallel import Estimate, estimate_run, model_costs
from erniekit.estimate.recompute import SHARE_OF_FREE, cheapest_that_fits, operator_costs
from erniekit.estimate.shares import Spread
from erniekit.estimate.state import BYTES
from erniekit.estimate.step_time import Workload
from erniekit.parallel.recomputation import Recomputation, choose_recomputation
from erniekit.parallel.schedule import Schedule, build_schedule, simulate
from erniekit.parallel.stages import DENSE_BLOCK, EXPERTS_BLOCK, Stages, choose_stages


@dataclass(frozen=True)
class Model:
    """Numbers and parameters of a model, which are trained, and how stored; see `shares.build_shares`."""

    numbers: Any
    shapes: Mapping[str, tuple[int, ...]]
    parts: Any
    is_trained: Mapping[str, bool] | None = None
    beside: Mapping[str, tuple[int, ...]] | None = None
    stored: Mapping[str, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Pipelining:
    """How the pipeline runs: its schedule, and the cut of the model into stages."""

    schedule: str = "1f1b"
    virtual_pp_degree: int = 1
    activation_cap: int | None = None
    pp_seg_method: str | Sequence[int] = "uniform"
    add_tail_layers: int = 0


def choose_pipelining(
    *,
    pipeline_schedule: str,
    pipeline_activation_cap: int,
    virtual_pp_degree: int,
    pp_seg_method: str,
    add_tail_layers: int,
) -> Pipelining:
    """What the keys of a configuration ask for."""
    if pipeline_schedule == "auto":
        pipeline_schedule = "interleaved" if virtual_pp_degree > 1 else "1f1b"
    return Pipelining(
        schedule=pipeline_schedule,
        virtual_pp_degree=virtual_pp_degree,
        activation_cap=pipeline_activation_cap or None,
        pp_seg_method=pp_seg_method,
        add_tail_layers=add_tail_layers,
    )


def workload_of(config: Config, numbers: Any, *, on_cpu: bool, attended: float) -> Workload:
    """What a process of the run of a configuration does in a step.

    Args:
        numbers: of the model.
        attended: tokens of the sample that a token belongs to, on average.
    """
    again = asdict(config.recompute)
    for name in ("offload_recompute_inputs", "memory_limit_gb"):
        del again[name]
    if again["recompute"] == "auto":
        again["recompute"] = "false"
    chosen = choose_recomputation(numbers.num_hidden_layers, **again)
    compute, routing = config.model.compute_type, config.routing
    balances = config.run.stage == "PT" if routing.moe_use_aux_free is None else routing.moe_use_aux_free
    return Workload(
        compute_type=compute if compute in BYTES else "bf16",
        quantised=compute not in (*BYTES, "auto"),
        rows=config.batch.per_device_train_batch_size,
        seq_len=config.sequences.max_seq_len,
        micro_batches=config.batch.gradient_accumulation_steps,
        attended=min(attended, config.sequences.max_seq_len),
        logits_rows=config.model.loss_subbatch_seqlen,
        attention_dropout=config.model.attention_probs_dropout_prob,
        native=on_cpu and config.run.kernels != "paddle",
        low_precision_moments=config.optimizer.use_lowprecision_moment,
        offload_optimizer=config.optimizer.offload_optim,
        fp8_dispatch=config.low_precision.use_fp8 and config.low_precision.fp8_dispatch,
        recomputation=None if chosen.is_nothing() else chosen,
        router_losses=bool(routing.moe_aux_loss_lambda) + bool(routing.moe_z_loss_lambda),
        balances=bool(routing.moe_use_aux_free_update_coef) and balances,
    )


def choose_cut(
    model: Model, spread: Spread, workload: Workload, machine: Machine, pipelining: Pipelining
) -> tuple[Schedule, Stages]:
    """The schedule of a step, and the blocks of every stage.

    Raises:
        ConfigError: the cut or the schedule does not fit the model or the micro-batches.
    """
    schedule = build_schedule(
        pipelining.schedule,
        spread.pipeline,
        workload.micro_batches,
        virtual_pp_degree=pipelining.virtual_pp_degree,
        activation_cap=pipelining.activation_cap,
    )
    numbers = model.numbers
    costs = live = None
    if pipelining.pp_seg_method == "auto":
        costs = model_costs(numbers, spread, workload, machine, shapes=model.shapes, parts=model.parts)
        peaks = simulate(schedule).peaks
        live = [peaks[schedule.owner(stage)[0]] for stage in range(schedule.num_stages)]
    stages = choose_stages(
        [
            EXPERTS_BLOCK if numbers.is_moe_layer(block) else DENSE_BLOCK
            for block in range(numbers.num_hidden_layers)
        ],
        schedule.num_stages,
        pp_seg_method=pipelining.pp_seg_method,
        add_tail_layers=pipelining.add_tail_layers,
        costs=costs,
        live=live,
    )
    return schedule, stages


def make_plan(
    model: Model, spread: Spread, workload: Workload, machine: Machine, pipelining: Pipelining
) -> Estimate:
    """The estimate of one plan.

    Raises:
        ConfigError: the cut or the schedule does not fit the model or the micro-batches.
    """
    schedule, cut = choose_cut(model, spread, workload, machine, pipelining)
    return estimate_run(
        model.numbers,
        spread,
        workload,
        machine,
        stages=[range(start, end) for start, end in cut],
        schedule=schedule,
        shapes=model.shapes,
        parts=model.parts,
        is_trained=model.is_trained,
        beside=model.beside,
        stored=model.stored,
    )


def automatic(model: Model, estimate: Estimate, pipelining: Pipelining) -> Estimate:
    """The estimate with the cheapest recomputation that fits into every rank (`recompute: auto`).

    Raises:
        ConfigError: not even with every block recomputed does it fit.
    """
    workload, numbers = estimate.workload, model.numbers
    none = Recomputation(((),) * numbers.num_hidden_layers)

    def plan(chosen: Recomputation) -> Estimate:
        again = None if chosen.is_nothing() else chosen
        changed = replace(workload, recomputation=again)
        return make_plan(model, estimate.spread, changed, estimate.machine, pipelining)

    def memory(chosen: Recomputation) -> float:
        tried = plan(chosen)
        return float(tried.ranks[tried.worst].total)

    native = workload.native
    chosen = cheapest_that_fits(
        numbers,
        memory,
        estimate.allowed,
        costs={
            block: operator_costs(
                numbers, block, width=workload.width, attended=workload.attended, native=native
            )
            for block in range(numbers.num_hidden_layers)
        },
        tokens=workload.rows * workload.seq_len // (estimate.spread.tensor * estimate.spread.context),
        start=workload.recomputation or none,
    )
    return plan(chosen)


def remedies(
    model: Model, estimate: Estimate, pipelining: Pipelining, *, most: int = 5
) -> Iterator[tuple[str, Estimate]]:
    """Changes, each tried, after which the run fits; the sequences of a step stay as many.

    Yields the keys to write and the estimate with them, at most `most`.
    """
    found = 0
    for words, spread, workload, machine_change in _changes(estimate, model.numbers):
        try:
            tried = make_plan(model, spread, workload, machine_change, pipelining)
        except ConfigError:
            continue
        if tried.fits and found < most:
            found += 1
            yield words, tried


def _changes(estimate: Estimate, numbers: Any) -> Iterator[tuple[str, Spread, Workload, Machine]]:
    """What could be written instead, one change after the other and then together."""
    spread, workload, machine = estimate.spread, estimate.workload, estimate.machine
    whole = Recomputation((("block",),) * numbers.num_hidden_layers, mtp=True, head=True)
    lean = replace(workload, recomputation=whole)
    already = workload.recomputation
    also = ""
    if already is None or not all("block" in own for own in already.operators):
        yield "recompute: true, use_recompute_loss_fn: true", spread, lean, machine
        also = "recompute: true, use_recompute_loss_fn: true, "
    if workload.rows > 1:
        fewer = replace(workload, rows=1, micro_batches=workload.micro_batches * workload.rows)
        words = f"per_device_train_batch_size: 1, gradient_accumulation_steps: {fewer.micro_batches}"
        yield words, spread, fewer, machine
    for stage in range(spread.sharding_stage + 1, 4):
        if spread.sharding > 1 and spread.pipeline == 1:  # what goes together, see `config/rules.py`
            yield f"{also}sharding: stage{stage}", replace(spread, sharding_stage=stage), lean, machine
    if not (workload.offload_optimizer or machine.on_cpu):
        yield f"{also}offload_optim: true", spread, replace(lean, offload_optimizer=True), machine
    if not spread.sequence_parallel and spread.tensor > 1:
        yield f"{also}sequence_parallel: true", replace(spread, sequence_parallel=True), lean, machine
    for times in (2, 3, 4, 6, 8, 12, 16, 32):
        if workload.micro_batches % times == 0:
            less = replace(lean, micro_batches=workload.micro_batches // times)
            wider = replace(spread, sharding=spread.sharding * times)
            beside = "" if spread.sharding > 1 else f"sharding: stage{spread.sharding_stage}, "
            words = (
                f"{also}{beside}sharding_parallel_degree: {wider.sharding}, gradient_accumulation_steps: "
                f"{less.micro_batches} ({wider.world_size} devices)"
            )
            yield words, wider, less, machine
        if spread.sharding == 1 or spread.sharding_stage == 1:
            longer = replace(spread, pipeline=spread.pipeline * times)
            words = f"{also}pipeline_parallel_degree: {longer.pipeline} ({longer.world_size} devices)"
            yield words, longer, lean, machine


def search(
    model: Model, workload: Workload, machine: Machine, *, devices: int, sequences: int
) -> list[tuple[Estimate, Pipelining]]:
    """Every plan for so many devices that fits, the fastest first.

    Args:
        workload: its recomputation and micro-batches are chosen anew.
        sequences: of a step, over all devices.
    """
    found = []
    whole = Recomputation((("block",),) * model.numbers.num_hidden_layers, mtp=True, head=True)
    for spread in spreads(model.numbers, devices, machine, seq_len=workload.seq_len):
        micro_batches, rest = divmod(sequences, spread.batch * workload.rows)
        if rest or not micro_batches or _least(model, spread, workload) > SHARE_OF_FREE * machine.memory:
            continue
        for pipelining in _pipelinings(spread, micro_batches, model.numbers.num_hidden_layers):
            for recomputation in (None, whole):
                tried = replace(workload, micro_batches=micro_batches, recomputation=recomputation)
                try:
                    estimate = make_plan(model, spread, tried, machine, pipelining)
                except ConfigError:
                    continue
                if estimate.fits:
                    found.append((estimate, pipelining))
                    break
    return sorted(found, key=lambda plan: plan[0].seconds)


def _least(model: Model, spread: Spread, workload: Workload) -> float:
    """Bytes below which the average rank cannot be: weights, and the gradients of stage 1."""
    experts = 1 if spread.moe_group == "mp" else spread.expert
    trained = sum(
        prod(shape)
        for name, shape in model.shapes.items()
        if model.is_trained is None or model.is_trained[name]
    )
    gradients = 4 * trained if spread.sharding_stage == 1 else 0
    width = 1 if workload.compute_type == "fp8" else workload.width
    weights = width * model.numbers.num_parameters() if spread.sharding_stage < 3 else 0
    return float(weights + gradients) / (spread.pipeline * spread.tensor * experts)


def spreads(numbers: Any, devices: int, machine: Machine, *, seq_len: int) -> Iterator[Spread]:
    """Ways to spread a model over devices that its heads, vocabulary, experts and blocks allow."""
    for tensor in _divisors(devices):
        heads = (numbers.num_attention_heads, numbers.num_key_value_heads, numbers.vocab_size)
        if tensor > machine.devices_per_node or any(number % tensor for number in heads):
            continue
        for context in _divisors(devices // tensor):
            if seq_len // context < 8192 and context > 1 or seq_len % context:
                continue
            for pipeline in _divisors(devices // tensor // context):
                if pipeline > numbers.num_hidden_layers:
                    continue
                batch = devices // tensor // context // pipeline
                for expert, group in _experts(numbers, tensor, batch, machine):
                    for sharding_stage in (1, 2, 3) if pipeline == 1 and batch > 1 else (1,):
                        yield Spread(
                            sharding=batch,
                            pipeline=pipeline,
                            tensor=tensor,
                            context=context,
                            expert=expert,
                            moe_group=group,
                            sharding_stage=sharding_stage,
                            sequence_parallel=tensor > 1,
                        )


def _experts(numbers: Any, tensor: int, batch: int, machine: Machine) -> Iterator[tuple[int, str]]:
    yield 1, "dummy"
    for count in getattr(numbers, "moe_num_experts", ())[:1]:
        if tensor > 1 and count % tensor == 0:
            yield tensor, "mp"
        for expert in _divisors(batch):
            if 1 < expert <= machine.devices_per_node // tensor and count % expert == 0:
                yield expert, "dp"


def _pipelinings(spread: Spread, micro_batches: int, num_blocks: int) -> Iterator[Pipelining]:
    if spread.pipeline == 1:
        yield Pipelining()
        return
    yield Pipelining(pp_seg_method="auto")
    yield Pipelining(schedule="zero_bubble", pp_seg_method="auto")
    if micro_batches % spread.pipeline == 0 and spread.pipeline * 2 <= num_blocks:
        yield Pipelining(schedule="interleaved", virtual_pp_degree=2, pp_seg_method="auto")


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]
