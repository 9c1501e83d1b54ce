"""The end of a run: `report.md` with its figures, and the picture of its loss."""

import os
import platform
from pathlib import Path

from erniekit.assemble import Assembled
from erniekit.checkpoint.atomic import write_file_atomic
from erniekit.config.config import Config
from erniekit.log import logger
from erniekit.train.figure import loss_figure
from erniekit.train.heat_map import load_heat_map
from erniekit.train.preference_figures import evaluation_table, is_of_preferences, pictures
from erniekit.train.reporting import TIMING_LOG, TRAIN_LOG, read_log
from erniekit.train.run import RunFolder
from erniekit.train.trainer import Trainer

# Of the log's rows, those whose first and last value the report tells.
_FOLLOWED = {
    "loss": "training loss",
    "lm_loss": "of it next-token loss",
    "token_balanced_loss": "token-balanced loss",
    "mtp_loss": "multi-token prediction loss",
    "aux_loss": "load-balancing loss, all routers",
    "z_loss": "router z-loss, all routers",
    "orthogonal_loss": "router orthogonal loss, all routers",
    "router_max_over_mean": "largest load of an expert over the mean",
    "router_entropy": "entropy of the load",
}


def write_outcome(run_folder: RunFolder, trainer: Trainer, config: Config, built: Assembled) -> None:
    """Write the report, and say where the model is."""
    rows = read_log(run_folder.path / TRAIN_LOG)
    steps = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "eval_loss" in row]
    name = config.reporting.run_name or config.model.model_name_or_path
    if steps:
        svg = loss_figure(
            # What is comparable with held-out loss, also where more is minimised.
            [(row["step"], row.get("lm_loss", row["loss"])) for row in steps],
            [(row["step"], row["eval_loss"]) for row in evaluations],
            title=f"{config.run.stage} of {name}",
        )
        write_file_atomic(run_folder.path / "loss.svg", svg.encode())
    for file, (_, svg) in pictures(steps, evaluations).items():
        write_file_atomic(run_folder.path / file, svg.encode())
    if steps and "routers" in steps[-1]:
        panels = [(f"step {row['step']}", row["routers"]) for row in (steps[0], steps[-1])]
        write_file_atomic(run_folder.path / "router.svg", load_heat_map(panels).encode())
    chosen = run_folder.store.best() or run_folder.store.latest()
    lines = _report(run_folder.path, trainer, config, built, steps, evaluations)
    kind = "a Hugging Face model folder" if built.adapter is None else "an adapter in peft's format"
    lines.append(f"\nThe model: `{chosen.path.name if chosen else 'none'}`, {kind}.\n")
    write_file_atomic(run_folder.path / "report.md", "\n".join(lines).encode())
    _announce(run_folder.path, evaluations, chosen.path if chosen else None)


def _report(
    path: Path, trainer: Trainer, config: Config, built: Assembled, steps: list[dict], evaluations: list[dict]
) -> list[str]:
    timing = read_log(path / TIMING_LOG)
    seconds = sum(row["seconds"] for row in timing)
    speeds = sorted(row["tokens_per_second"] for row in timing)
    peak = max((row["peak_memory_bytes"] for row in timing), default=0)
    lines = [
        f"# {config.run.stage} of {config.model.model_name_or_path}\n",
        "| | |",
        "|---|---|",
        f"| parameters | {built.num_parameters:,}, trained {built.num_trained:,} |",
        f"| data | {config.train_data.train_dataset_path} |",
        f"| steps | {trainer.progress.step} |",
        f"| trained tokens | {trainer.progress.num_tokens:,} |",
        f"| learning rate | {config.optimizer.learning_rate:g}, {config.schedule.lr_scheduler_type} |",
        f"| skipped steps | {trainer.nonfinite.num_skipped} |",
    ]
    if built.spread is not None:
        lines.append(f"| processes | {built.spread.mesh.layout.in_words()} |")
    if steps:
        lines += [
            f"| {words} | first {steps[0][name]:.4f}, last {steps[-1][name]:.4f} |"
            for name, words in _FOLLOWED.items()
            if name in steps[0] and name in steps[-1]
        ]
    if speeds:
        lines.append(
            f"| speed | median {speeds[len(speeds) // 2]:.0f} tokens/s, {seconds:.0f} s of training |"
        )
        lines.append(f"| peak memory | {peak / 2**30:.2f} GiB |")
    lines.append(f"| machine | {_machine()} |")
    if evaluations and is_of_preferences(evaluations[-1]):
        lines += evaluation_table(evaluations)
    elif evaluations:
        lines += ["\n| step | held-out loss | perplexity | token accuracy |", "|---|---|---|---|"]
        lines += [
            f"| {row['step']} | {row['eval_loss']:.4f} | {row['eval_perplexity']:.3f} "
            f"| {row['eval_accuracy']:.1%} |"
            for row in evaluations
        ]
    if steps:
        lines.append("\n![loss](loss.svg)")
        lines += [f"\n![{words}]({file})" for file, (words, _) in pictures(steps, evaluations).items()]
        if "routers" in steps[-1]:
            lines.append("\n![load of experts](router.svg)")
    return lines


def _machine() -> str:
    """Processor, cores of this process and system, so that a figure says where it was taken."""
    model = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        model = next(
            (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {os.cpu_count()} cores, {platform.system()}"


def _announce(path: Path, evaluations: list[dict], model: Path | None) -> None:
    if len(evaluations) > 1:
        first, last = evaluations[0], evaluations[-1]
        logger.info(
            f"held-out loss {first['eval_loss']:.4f} at step {first['step']} -> {last['eval_loss']:.4f} at "
            f"step {last['step']}"
        )
    logger.info(f"done: {path / 'report.md'}; model in {model}")
