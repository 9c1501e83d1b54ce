"""What is published of ERNIE 4.5 300B on many devices, and what the estimates say of the same runs.

Published are the least number of devices for fine-tuning and the utilisation of the largest pre-training
run; nothing of how they were measured. What the estimate had to assume stands beside each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from erniekit.estimate.machines import MACHINES
from erniekit.estimate.parallel import Estimate
from erniekit.estimate.plans import Model, Pipelining, make_plan
from erniekit.estimate.shares import Spread
from erniekit.estimate.step_time import Workload
from erniekit.parallel.recomputation import Recomputation

_BLOCKS = 54
_WHOLE = Recomputation((("block",),) * _BLOCKS, mtp=True, head=True)
_INNER = Recomputation((("norm", "gate_up", "activation"),) * _BLOCKS, head=True)
_SFT: dict[str, Any] = {"rows": 1, "seq_len": 8192, "attended": 8192, "logits_rows": 4096, "micro_batches": 8}
_PT: dict[str, Any] = {"rows": 1, "seq_len": 4096, "attended": 4096, "logits_rows": 4096, "micro_batches": 90}
_OVER_TENSOR: dict[str, Any] = {"tensor": 8, "expert": 8, "moe_group": "mp", "sequence_parallel": True}
_LEAN: dict[str, Any] = {"recomputation": _WHOLE, "low_precision_moments": True}


@dataclass(frozen=True)
class Published:
    """A run, what is published of it, and what is assumed where nothing is."""

    name: str
    published: str
    assumed: str
    spread: Spread
    workload: Workload
    pipelining: Pipelining = Pipelining()  # noqa: RUF009


def _sft(
    devices: str, published: str, assumed: str, *, pipeline: int, sharding: int = 1, **more: Any
) -> Published:
    return Published(
        f"SFT 8k, {devices}",
        published,
        assumed,
        Spread(pipeline=pipeline, sharding=sharding, **_OVER_TENSOR),
        Workload(**{"compute_type": "bf16", **_SFT, **_LEAN, **more}),
    )


def _pre_training(
    name: str, assumed: str, compute_type: str, pipelining: Pipelining, again: Any
) -> Published:
    return Published(
        f"pre-training 4k, PP12 EP8 sharding 168, {name}",
        "2,016 H800, MFU 47 %",
        assumed,
        Spread(pipeline=12, sharding=168, expert=8, moe_group="dp"),
        Workload(compute_type=compute_type, fp8_dispatch=compute_type == "fp8", recomputation=again, **_PT),
        pipelining,
    )


_BALANCED = Pipelining(pp_seg_method="auto")
RUNS = (
    _sft("TP8 PP5", "96 x 80 GB", "the YAML's degrees alone: 40 devices", pipeline=5),
    _sft("TP8 PP5 sharding 3", "96 x 80 GB", "the next multiples of 40", pipeline=5, sharding=3),
    _sft("TP8 PP12", "96 x 80 GB", "another cut for 96 devices", pipeline=12),
    _sft(
        "FP8 TP8 PP2",
        "16 x 80 GB, 2 TB of main memory",
        "experts in 8 bits, optimizer in main memory, fp32 gradients",
        pipeline=2,
        compute_type="fp8",
        offload_optimizer=True,
    ),
    _pre_training("bf16", "every block recomputed, blocks in equal numbers", "bf16", Pipelining(), _WHOLE),
    _pre_training("fp8", "MLPs in fp8, every block recomputed, stages balanced", "fp8", _BALANCED, _WHOLE),
    _pre_training(
        "fp8", "MLPs in fp8, norms, gate and up recomputed, stages balanced", "fp8", _BALANCED, _INNER
    ),
)


def estimates(model: Model) -> Iterator[tuple[Published, Estimate]]:
    """Every run with its estimate, on H800."""
    for run in RUNS:
        yield run, make_plan(model, run.spread, run.workload, MACHINES["H800"], run.pipelining)


def table(model: Model) -> str:
    """A Markdown table of `estimates`."""
    lines = [
        "| run | published | assumed | devices | worst rank, GiB | fits 80 GiB | bubble | step, s | MFU |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run, estimate in estimates(model):
        cells = (
            run.name,
            run.published,
            run.assumed,
            f"{estimate.spread.world_size:,}",
            f"{estimate.ranks[estimate.worst].total / 2**30:.1f} (rank {estimate.worst})",
            "yes" if estimate.fits else "no",
            f"{100 * estimate.bubble:.0f} %",
            f"{estimate.seconds:.1f}",
            f"{100 * estimate.utilisation:.0f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
