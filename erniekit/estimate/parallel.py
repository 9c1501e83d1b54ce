"""A run on several devices before it starts: memory by cause, bytes sent by axis, bubble, time of a step.

Every pipeline rank is a smaller model (`shares.py`) whose memory the estimate of one device gives, with
what is different where others share the work:

- activations are those of the micro-batches that the schedule has under way, from its simulation;
- weights, gradients and optimizer states are divided by the stage of sharding (evenly);
- `buffers` are what is only there to be sent: a message between stages, rows on their way to experts and
  back, the gradients or weights of the largest block where sharding gathers them block by block.

On one device nothing of this is there, and the memory is that of `memory.training_memory`. Left out are
imbalance between experts and what the communication library keeps.

Time is arithmetic at `efficiency` of the peak, and bytes at the bandwidth of their axis: within a layer
one waits for the other; messages between stages go on beside the arithmetic; the reduction of gradients
hides behind the last backward pass as far as that is long enough.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from erniekit.estimate import memory, native_memory
from erniekit.estimate.flops import training_flops
from erniekit.estimate.machines import Machine
from erniekit.estimate.recompute import SHARE_OF_FREE
from erniekit.estimate.shares import Share, Spread, build_shares
from erniekit.estimate.state import Held
from erniekit.estimate.step_time import Workload, local_tokens, recomputed_of, speed, stage_times
from erniekit.estimate.traffic import (
    Passing,
    Sent,
    Traffic,
    gradient_traffic,
    pipeline_messages,
    stage_traffic,
)
from erniekit.parallel.schedule import SENDS, Schedule, Simulated, simulate
from erniekit.parallel.stages import Cost, ModelCosts


@dataclass(frozen=True)
class RankEstimate:
    """Of the processes of one pipeline rank: parameters, bytes by cause and by axis, shares of the time.

    memory: at the peak, by cause; host: in main memory. sent: in a step, by axis. busy: seconds.
    activations: bytes of those that are kept for backward passes, where most of them are.
    """

    parameters: int
    trained: int
    blocks: tuple[int, ...]
    memory: dict[str, int]
    host: int
    sent: dict[str, int]
    busy: float
    bubble: float
    activations: int

    @property
    def total(self) -> int:
        """Bytes on the device at the peak."""
        return sum(self.memory.values())


@dataclass(frozen=True)
class Estimate:
    """Of a whole run. Times in seconds; tokens of a step over all processes."""

    spread: Spread
    workload: Workload
    machine: Machine
    ranks: tuple[RankEstimate, ...]
    tokens: int
    model_flops: float
    pipeline: float
    exposed: float
    update: float
    bubble: float

    @property
    def worst(self) -> int:
        """The pipeline rank that needs most memory."""
        return max(range(len(self.ranks)), key=lambda rank: self.ranks[rank].total)

    @property
    def allowed(self) -> float:
        """Bytes that a device may be filled with."""
        return SHARE_OF_FREE * self.machine.memory

    @property
    def fits(self) -> bool:
        """Whether every rank does."""
        return self.ranks[self.worst].total <= self.allowed

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.pipeline + self.exposed + self.update

    @property
    def utilisation(self) -> float:
        """Model FLOPs utilisation against the peak of all devices."""
        return self.model_flops / (self.seconds * self.spread.world_size * self.machine.peak)


def estimate_run(
    config: Any,
    spread: Spread,
    workload: Workload,
    machine: Machine,
    *,
    stages: Sequence[Sequence[int]],
    schedule: Schedule,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Any,
    is_trained: Mapping[str, bool] | None = None,
    beside: Mapping[str, tuple[int, ...]] | None = None,
    stored: Mapping[str, float] | None = None,
) -> Estimate:
    """Memory, traffic and time of a run.

    Args:
        config: numbers of the model.
        stages: the blocks of each stage of the pipeline.
        The others are those of `build_shares`.
    """

    def shares(places: Sequence[Sequence[int]]) -> list[Share]:
        own: dict[str, Any] = {
            "is_trained": is_trained,
            "beside": beside,
            "stored": stored,
            "width": workload.width,
        }
        return build_shares(config, spread, stages, places, shapes=shapes, parts=parts, **own)

    by_rank, by_stage = shares(schedule.places), shares([[stage] for stage in range(len(stages))])
    traffic = [_traffic(share, workload) for share in by_stage]
    times = [
        stage_times(share, workload, machine, sent) for share, sent in zip(by_stage, traffic, strict=True)
    ]
    message = pipeline_messages(by_stage[0], tokens=local_tokens(workload, spread), width=workload.width)
    apart = spread.world_size // spread.pipeline * 2
    run = simulate(
        schedule,
        forward=[forward for forward, _, _ in times],
        backward_input=[backward for _, backward, _ in times],
        backward_weight=[weights for _, _, weights in times],
        communication=message / machine.bandwidth(apart) if spread.pipeline > 1 else 0.0,
        activations=[_activations(share, workload, machine.on_cpu) for share in by_stage],
    )
    ranks, exposed, update = [], 0.0, 0.0
    for rank, share in enumerate(by_rank):
        sent = _sum(traffic[stage] for stage in schedule.places[rank])
        sent.step = _gradients(share, workload)
        messages = sum(action.kind in SENDS for action in schedule.programs[rank])
        sent.step["pipeline"] += messages * message
        ranks.append(_rank(share, workload, machine, run, rank, sent))
        last_backward = sum(times[stage][1] + times[stage][2] for stage in schedule.places[rank])
        reduction = sum(sent.step[axis] / speed(machine, spread, axis) for axis in ("data", "sharding"))
        exposed = max(exposed, reduction - last_backward)
        update = max(update, 2 * ranks[-1].host / machine.host)
    tokens = spread.batch * workload.micro_batches * workload.rows * workload.seq_len
    return Estimate(
        spread,
        workload,
        machine,
        tuple(ranks),
        tokens,
        model_flops=tokens * _model_flops(config, workload, by_rank),
        pipeline=run.makespan,
        exposed=exposed,
        update=update,
        bubble=run.bubble,
    )


def model_costs(
    config: Any,
    spread: Spread,
    workload: Workload,
    machine: Machine,
    *,
    shapes: Mapping[str, tuple[int, ...]],
    parts: Any,
) -> ModelCosts:
    """What every part of a model takes, for a cut that balances the stages (`pp_seg_method: auto`)."""
    blocks = [[block] for block in range(config.num_hidden_layers)]
    shares = build_shares(
        config, spread, blocks, [[b] for b in range(len(blocks))], shapes=shapes, parts=parts
    )
    state = workload.width + 4 + (12 if workload.width == 2 else 8) / spread.sharding

    def cost(share: Share, *, first: bool, last: bool) -> Cost:
        share.first, share.last = first, last
        ahead = share.num_nextn_predict_layers
        share.num_nextn_predict_layers = ahead if last else 0
        sent = _traffic(share, workload)
        time = sum(stage_times(share, workload, machine, sent))
        share.num_nextn_predict_layers = ahead
        return Cost(time, activations=_activations(share, workload, machine.on_cpu))

    inner = [cost(share, first=False, last=False) for share in shares]
    ends = cost(shares[0], first=True, last=False), cost(shares[-1], first=False, last=True)
    head = state * config.vocab_size * config.hidden_size / spread.tensor
    middle = [share.weights.total for share in shares]
    middle[0] -= head / state
    middle[-1] -= shares[-1].weights.total - middle[-2]
    return ModelCosts(
        tuple(replace(one, state=state * size) for one, size in zip(inner, middle, strict=True)),
        first=Cost(ends[0].time - inner[0].time, head, ends[0].activations - inner[0].activations),
        last=Cost(ends[1].time - inner[-1].time, head, ends[1].activations - inner[-1].activations),
    )


def _traffic(share: Share, workload: Workload) -> Traffic:
    tokens = local_tokens(workload, share.spread)
    passing = Passing(
        tokens=tokens,
        labelled=tokens * workload.labelled_share,
        width=workload.width,
        fp8_dispatch=workload.fp8_dispatch,
        away=workload.away,
        router_losses=workload.router_losses,
    )
    return stage_traffic(share, passing, workload.recomputation)


def _sum(parts: Any) -> Traffic:
    whole = Traffic()
    for part in parts:
        whole.forward.add(part.forward)
        whole.backward.add(part.backward)
    return whole


def _activations(share: Share, workload: Workload, on_cpu: bool) -> float:
    """Bytes that a micro-batch keeps in a stage."""
    tokens = local_tokens(workload, share.spread) / share.spread.activation_split
    again = recomputed_of(workload.recomputation, share)
    common: dict[str, Any] = {
        "tokens": tokens,
        "attended": workload.attended,
        "attention_dropout": workload.attention_dropout,
        "recomputation": again,
        "head": share.last,
    }
    if workload.native:
        beside = tokens * workload.width * share.weights.kept_beside
        return beside + native_memory.kept_activations(share, width=workload.width, **common)
    narrow = workload.compute_type != "fp32"
    beside = tokens * 4 * share.weights.kept_beside
    return beside + memory.kept_activations(share, narrow=narrow, on_cpu=on_cpu, **common)


def _rank(
    share: Share, workload: Workload, machine: Machine, run: Simulated, rank: int, sent: Traffic
) -> RankEstimate:
    spread, trained, weights = share.spread, share.trained, share.weights

    def divided(dense: float, experts: float, least_stage: int) -> float:
        if spread.sharding_stage < least_stage:
            return dense + experts
        return dense / spread.sharding + experts / spread.expert_sharding

    states = divided(trained.dense, trained.experts, 1)
    causes = memory.training_memory(
        share,
        num_trained=trained.total,  # type: ignore[arg-type]  # a share may be a fraction
        compute_type=workload.compute_type,
        rows=workload.rows,
        seq_len=workload.seq_len / (spread.context * spread.activation_split),  # type: ignore[arg-type]
        attended=workload.attended,
        logits_rows=workload.logits_rows,
        on_cpu=machine.on_cpu,
        micro_batches=workload.micro_batches,
        attention_dropout=workload.attention_dropout,
        native=workload.native,
        low_precision_moments=workload.low_precision_moments,
        recomputation=recomputed_of(workload.recomputation, share),
        held=Held(
            activations=run.peaks[rank],
            weights=divided(weights.dense, weights.experts, 3),
            gradients=divided(trained.dense, trained.experts, 2),
            states=states,
            head=share.last,
            quantised=workload.quantised,
        ),
    )
    causes["weights"] -= int(weights.spared / (spread.sharding if spread.sharding_stage == 3 else 1))
    if workload.compute_type == "fp8":
        causes["weights"] -= int(divided(0, weights.experts, 3))
    host = causes.pop("optimizer", 0) if workload.offload_optimizer and not machine.on_cpu else 0
    buffers = _buffers(share, workload)
    if buffers:
        causes["buffers"] = int(buffers)
    return RankEstimate(
        parameters=int(weights.total),
        trained=int(trained.total),
        blocks=share.blocks,
        memory=causes,
        host=host,
        sent={axis: round(size) for axis, size in sent.total(workload.micro_batches).items()},
        busy=run.busy[rank],
        bubble=run.bubbles[rank],
        activations=int(run.peaks[rank]),
    )


def _buffers(share: Share, workload: Workload) -> float:
    """Bytes that are only there to be sent or to be received into."""
    spread = share.spread
    tokens = local_tokens(workload, spread)
    size = 0.0
    if spread.pipeline > 1:
        size += 2 * pipeline_messages(share, tokens=tokens, width=workload.width)
    if spread.expert > 1 and any(map(share.is_moe_layer, range(len(share.blocks)))):
        rows = tokens / spread.activation_split * share.moe_k
        size += rows * share.hidden_size * workload.width
    if spread.sharding > 1 and spread.sharding_stage >= 2 and share.blocks:
        # Gradients of what is computed, and of the block after it on their way; weights of what is outside of
        # blocks, of a block, and of the next one.
        ends = share.vocab_size * share.hidden_size * share.num_ends()
        trained_ends = min(ends, share.trained.total)
        block = (share.trained.total - trained_ends) / len(share.blocks)
        size += 4 * (block + max(block, trained_ends))
        if spread.sharding_stage == 3:
            size += workload.width * (ends + 2 * (share.weights.total - ends) / len(share.blocks))
    return size


def _gradients(share: Share, workload: Workload) -> Sent:
    shared = share.whole.tie_word_embeddings or share.whole.num_nextn_predict_layers
    return gradient_traffic(
        share,
        width=workload.width,
        micro_batches=workload.micro_batches,
        tied=bool(shared) and share.first != share.last,
        balances=workload.balances,
    )


def _model_flops(config: Any, workload: Workload, shares: Sequence[Share]) -> float:
    """FLOPs of a token, as MFU counts them."""
    weights = sum(share.weights.total for share in shares)
    trained = sum(share.trained.total for share in shares)
    return training_flops(
        config,
        attended=workload.attended,
        labelled_share=workload.labelled_share,
        trained_share=min(1.0, trained / weights),
        ahead=config.num_nextn_predict_layers > 0,
    )
