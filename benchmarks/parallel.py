"""Several processes on one machine: bytes sent, time and memory by plan, and schedules of a pipeline.

    python benchmarks/parallel.py
    python benchmarks/parallel.py --only plans
    python benchmarks/parallel.py --only sharding

Every plan trains a model of random weights for a few steps, each process on one thread, over the same rows.
Its first loss is that of one process. Bytes sent in a step and the largest resident size of the first process
stand beside what `erniekit plan` predicts. Processes share the cores of one machine: times compare plans
there, and say nothing of many machines.

Of a pipeline, the bubble of the first rank is measured and simulated with the durations that were measured
in the step, and its activations are counted. Of sharding, bytes of tensors are counted in each process, by
stage (the table of docs/parallel.md). The last line is one JSON object; the exit status is 1 when
losses differ, bytes are not those predicted, or memory is further off than `--tolerance`.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import HERE, machine, say, table

sys.path.insert(0, str(HERE.parent))

COMMON: dict[str, Any] = {
    **{"vocab_size": 6144, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4},
    **{"head_dim": 64, "intermediate_size": 1536, "num_hidden_layers": 8, "tie_word_embeddings": True},
}
EXPERTS = {"moe_num_experts": (8,), "moe_intermediate_size": (256,), "moe_k": 2, "moe_num_shared_experts": 1}
KEYS: dict[str, Any] = {
    **{"device": "cpu", "kernels": "native", "compute_type": "fp32", "max_seq_len": 128, "seed": 7},
    **{"per_device_train_batch_size": 2, "pad_to_max_seqlen": True, "evaluation_strategy": "no"},
    **{"save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "moe_aux_loss_lambda": 0.01},
}
MICRO_BATCHES = 4
TP2, PP2 = {"tensor_parallel_degree": 2}, {"pipeline_parallel_degree": 2}
SP2 = {**TP2, "sequence_parallel": True}
# Name -> model, processes, those that read other sequences, keys.
PLANS: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "one process": ("dense", 1, 1, {}),
    "data 2": ("dense", 2, 2, {}),
    "sharding 2, stage 1": ("dense", 2, 2, {"sharding": "stage1"}),
    "sharding 2, stage 2": ("dense", 2, 2, {"sharding": "stage2"}),
    "sharding 2, stage 3": ("dense", 2, 2, {"sharding": "stage3"}),
    "tensor 2": ("dense", 2, 1, TP2),
    "tensor 2, sequence": ("dense", 2, 1, SP2),
    "context 2": ("dense", 2, 1, {"context_parallel_degree": 2}),
    "pipeline 2": ("dense", 2, 1, PP2),
    "sharding 4, stage 1": ("dense", 4, 4, {"sharding": "stage1"}),
    "sharding 4, stage 3": ("dense", 4, 4, {"sharding": "stage3"}),
    "tensor 2, pipeline 2": ("dense", 4, 1, {**TP2, **PP2}),
    "experts: one process": ("experts", 1, 1, {}),
    "experts: expert 2 over data": ("experts", 2, 2, {"moe_group": "dp", "expert_parallel_degree": 2}),
    "experts: expert 2 over tensor, sequence": ("experts", 2, 1, {**SP2, "moe_group": "mp"}),
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "1f1b": {},
    "interleaved": {"virtual_pp_degree": 2},
    "zero_bubble": {},
    "memory_capped": {"virtual_pp_degree": 2, "pipeline_activation_cap": 3},
}

# Processes and stage; without sharding all hold what one does.
SHARED = ((1, 0), (2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (4, 3))


def main(argv: list[str] | None = None) -> int:
    """Run all plans and schedules; returns 1 when something is not as predicted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("plans", "schedules", "sharding"), help="one part")
    parser.add_argument("--steps", type=int, default=3, help="steps, of which the first is not timed")
    parser.add_argument("--tolerance", type=float, default=0.1, help="largest error of memory")
    options = parser.parse_args(argv)
    where, summary, problems = machine(), dict[str, Any](), list[str]()
    say(f"load average before: {where['load_average_before']} (other work makes times worthless)")
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(Path(folder), options.steps)
        if options.only in (None, "plans"):
            summary["plans"] = [runs.plan(name) for name in PLANS]
            problems += wrong(summary["plans"], options.tolerance)
            say(table(plan_rows(summary["plans"])))
        if options.only in (None, "schedules"):
            summary["schedules"] = [runs.schedule(name) for name in SCHEDULES]
            say(table(schedule_rows(summary["schedules"])))
        if options.only in (None, "sharding"):
            summary["sharding"] = [runs.sharding(count, stage) for count, stage in SHARED]
            say(table(sharding_rows(summary["sharding"])))
    for problem in problems:
        say(problem)
    say(json.dumps({**summary, "problems": len(problems), "machine": where}))
    return int(bool(problems))


def of_plan(path: str) -> list[Any]:
    """What each process of a plan does, with memory as the command has it."""
    from erniekit.cli.launch import prepare_environment

    prepare_environment()
    from erniekit.train.measured import measure_runs

    return measure_runs({path: path})[path]


def of_schedule(path: str) -> dict[str, float]:
    """The same of a schedule."""
    from erniekit.cli.launch import prepare_environment

    prepare_environment()
    from erniekit.train.measured import measure_pipeline

    return measure_pipeline(path)


class Runs:
    """Runs of the two models, whose folders and rows are made once."""

    def __init__(self, folder: Path, steps: int) -> None:
        from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
        from erniekit.testing.tiny_run import write_run

        self._folder, self._steps = folder, steps
        models = {"dense": tiny_config(**COMMON), "experts": tiny_moe_config(**COMMON, **EXPERTS)}
        self._bases = {kind: write_run(folder / kind, numbers) for kind, numbers in models.items()}

    def _write(self, name: str, kind: str, **keys: Any) -> str:
        base = json.loads(self._bases[kind].read_text(encoding="utf-8"))
        out = self._folder / name.replace(" ", "-").replace(",", "")
        own = {"output_dir": str(out), "max_steps": self._steps, **keys}
        path = out.with_suffix(".yaml")
        path.write_text(json.dumps({**base, **KEYS, **own}), encoding="utf-8")
        return str(path)

    def plan(self, name: str) -> dict[str, Any]:
        """One plan, in processes of its own."""
        from erniekit.estimate.traffic import compared
        from erniekit.testing.distributed import run_distributed
        from erniekit.train.measured import planned

        kind, count, replicas, keys = PLANS[name]
        path = self._write(name, kind, gradient_accumulation_steps=MICRO_BATCHES // replicas, **keys)
        found = run_distributed(
            *("parallel:of_plan", count, path),
            timeout=240,
            ERNIEKIT_KERNELS="native",
        )
        axes: dict[str, list[float]] = {}
        for rank, run in enumerate(found):
            estimate = planned(path, count, run[0])
            of_rank = estimate.ranks[rank // (count // estimate.spread.pipeline)]
            for axis, both in compared(run[0].sent, of_rank.sent).items():
                axes[axis] = max(axes.get(axis, [0, 0]), list(both))
        predicted, peak = estimate.ranks[0].total, self._peak(path, count)
        row = {
            "name": name,
            "model": kind,
            "processes": count,
            "seconds": round(statistics.median(step.seconds for step in found[0][1:]), 4),
            "sent": {
                axis: {"measured": int(one), "predicted": int(two)} for axis, (one, two) in axes.items()
            },
            "memory": {"measured": peak, "predicted": predicted},
            "loss": found[0][0].loss,
        }
        told = f"{peak / 2**20:.0f} MiB ({predicted / 2**20:.0f} predicted)"
        say(f"{name}: {row['seconds']:.2f} s a step, {told}")
        return row

    def _peak(self, path: str, count: int) -> int:
        """Largest resident size of the first process of the command itself."""
        from erniekit.testing.tiny_run import run_erniekit
        from erniekit.train.reporting import read_log

        out = Path(path).with_suffix(".command")
        words = ("train", path, f"nproc_per_node={count}", f"output_dir={out}")
        done = run_erniekit(*words, timeout=240, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        return int(max(row["peak_memory_bytes"] for row in read_log(out / "timing.jsonl")))

    def schedule(self, name: str) -> dict[str, Any]:
        """One schedule of two ranks, looked at in its last step."""
        from erniekit.testing.distributed import run_distributed

        keys = {**PP2, "pipeline_schedule": name, **SCHEDULES[name]}
        path = self._write(f"schedule-{name}", "dense", gradient_accumulation_steps=MICRO_BATCHES, **keys)
        found = run_distributed(*("parallel:of_schedule", 2, path), timeout=240, ERNIEKIT_KERNELS="native")
        say(f"{name}: bubble {found[0]['bubble']:.1%}, simulated {found[0]['simulated_bubble']:.1%}")
        return {"name": name, "ranks": found}

    def sharding(self, count: int, stage: int) -> dict[str, float]:
        """Bytes of tensors of the process that holds most, of a model of its own."""
        from erniekit.testing.distributed import run_distributed

        found = run_distributed("erniekit.testing.held:measure_sharding", count, [stage], timeout=240)
        most: dict[str, float] = max((each[stage] for each in found), key=lambda each: each["peak"])
        return {"processes": count, "stage": stage, **most}


def wrong(rows: list[dict[str, Any]], tolerance: float) -> list[str]:
    """What is not as in one process, or not as predicted."""
    problems = []
    first = {row["model"]: row["loss"] for row in reversed(rows) if row["processes"] == 1}
    for row in rows:
        if abs(row["loss"] / first.get(row["model"], row["loss"]) - 1) > 1e-5:
            problems.append(f"{row['name']}: loss {row['loss']}, of one process {first[row['model']]}")
        for axis, sent in row["sent"].items():
            if sent["measured"] != sent["predicted"]:
                problems.append(f"{row['name']}: {axis} sent {sent}")
        if abs(row["memory"]["predicted"] / row["memory"]["measured"] - 1) > tolerance:
            problems.append(f"{row['name']}: memory {row['memory']}")
    return problems


def plan_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A table of plans."""
    found = [["plan", "s a step", "a process sends a step, MB", "peak MiB", "predicted"]]
    for row in rows:
        sent = ", ".join(f"{axis} {both['measured'] / 1e6:.1f}" for axis, both in row["sent"].items())
        peak, predicted = (row["memory"][key] for key in ("measured", "predicted"))
        memory = [f"{peak / 2**20:.0f}", f"{predicted / 2**20:.0f} ({predicted / peak - 1:+.1%})"]
        found.append([row["name"], f"{row['seconds']:.2f}", sent or "nothing", *memory])
    return found


def schedule_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """A table of schedules: of the first rank, which holds most."""
    found = [
        ["schedule", "s a step", "bubble", "simulated", "activations, MiB", "simulated", "micro-batches"]
    ]
    for row in rows:
        rank = row["ranks"][0]
        found.append(
            [
                row["name"],
                f"{rank['seconds']:.2f}",
                *(f"{rank[key]:.1%}" for key in ("bubble", "simulated_bubble")),
                *(f"{rank[key] / 2**20:.1f}" for key in ("activations", "simulated_activations")),
                str(rank["peak"]),
            ]
        )
    return found


def sharding_rows(rows: list[dict[str, float]]) -> list[list[str]]:
    """A table of stages, MiB."""
    kinds = ("weights", "gradients", "states", "peak")
    return [
        ["processes", "stage", *kinds],
        *(
            [f"{row[k]:g}" for k in ("processes", "stage")] + [f"{row[k] / 2**20:.1f}" for k in kinds]
            for row in rows
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
