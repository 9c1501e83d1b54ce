"""The screen before the first step: what will run, whether it fits, and one sample with its mask.

Most wasted runs could have been seen here: the wrong model, a mask that trains on nothing, more
memory than the machine has, ten times the steps that were meant.
"""

from collections.abc import Mapping

import paddle
from rich.console import Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from erniekit.assemble import Assembled
from erniekit.config.config import Config
from erniekit.data.report import DataReport
from erniekit.data.sample import Sample
from erniekit.data.show import sample_text
from erniekit.data.tokenizer import Tokenizer
from erniekit.estimate.hardware import measure_flops
from erniekit.estimate.plan_words import axes_in_words
from erniekit.log import error_console, logger
from erniekit.ops.backend import kernels_in_words, on_cpu
from erniekit.ops.linear import linear
from erniekit.parallel.recomputation import Recomputation
from erniekit.train.devices import free_memory
from erniekit.train.pipelining import in_words
from erniekit.train.planning import RunPlan
from erniekit.train.preference import settings_of, words_for_start_screen
from erniekit.train.recompute import step_memory
from erniekit.train.trainer import Trainer


def show_start_screen(
    config: Config,
    built: Assembled,
    trainer: Trainer,
    report: DataReport,
    recomputation: Recomputation,
    *,
    sample: Sample,
    tokenizer: Tokenizer,
    device: str,
    plan: RunPlan | None = None,
) -> None:
    """Print the screen to standard error, and measure the peak that MFU is told against.

    Args:
        sample: a training sample to show with its mask.
        device: Paddle's name of the device.
        plan: of several processes.
    """
    trainer.reporter.peak_flops = _peak_flops(built.compute_dtype)
    if plan is None:
        memory, available = step_memory(config, built, report, recomputation), free_memory(device)
    else:
        memory, available = plan.memory, int(plan.estimate.machine.memory)
    table = Table.grid(padding=(0, 2))
    essentials = _essentials(config, built, trainer, report, device, recomputation)
    if plan is not None:
        essentials["processes"] = _processes(plan)
    if plan is not None and plan.is_cut:
        essentials["pipeline"] = in_words(plan)
    for label, text in essentials.items():
        table.add_row(Text(label, style="bold"), Text(text))
    error_console.print(
        Panel(
            Group(
                table,
                Text(),
                _memory_line(memory, available, "" if plan is None else " of a process"),
                Text("\none sample"),
                sample_text(sample, tokenizer),
            ),
            title="ErnieKit",
            title_align="left",
            border_style="cyan",
        ),
        soft_wrap=False,
    )
    total = sum(memory.values())
    if total > available:
        logger.warning(
            f"the run is estimated to need {gibibytes(total)} and {gibibytes(available)} are free: lower "
            "per_device_train_batch_size (and raise gradient_accumulation_steps) or max_seq_len, or write "
            "recompute: auto"
        )


def _essentials(
    config: Config,
    built: Assembled,
    trainer: Trainer,
    report: DataReport,
    device: str,
    recomputation: Recomputation,
) -> dict[str, str]:
    batch, optimizer = config.batch, config.optimizer
    rows = batch.per_device_train_batch_size * batch.gradient_accumulation_steps * trainer.team.num_replicas
    where = f"{config.run.output_dir}, from step {trainer.progress.step}"
    packed = "packed" if config.sequences.packing else "padded"
    peak = f"{trainer.reporter.peak_flops / 1e9:.0f} GFLOP/s measured"
    trained = f"{built.num_trained:,} trained" if built.num_trained != built.num_parameters else "all trained"
    preference = {}
    if config.run.stage == "DPO":
        words = words_for_start_screen(
            settings_of(config),
            adapted=built.adapter is not None,
            in_stages=trainer.team.pipeline is not None,
        )
        preference = {"preference": words}
    adapter = {} if built.adapter is None else {"adapter": built.adapter.words()}
    recompute = {} if recomputation.is_nothing() else {"recompute": recomputation.words()}
    return {
        "model": f"{config.model.model_name_or_path}: {built.num_parameters:,} parameters, {trained}",
        "work": f"{config.run.stage}, fine_tuning {config.model.fine_tuning}, "
        f"{built.numbers_in_words()} on {device} by {kernels_in_words()}, {peak}",
        **adapter,
        **preference,
        "data": f"{config.train_data.train_dataset_path}: {report.samples:,} samples, "
        f"{report.tokens:,} tokens",
        "step": f"{rows} sequences of {config.sequences.max_seq_len} tokens ({packed}), in "
        f"{batch.gradient_accumulation_steps} micro-batches",
        "steps": f"{trainer.total_steps} ({trainer.loader.steps_per_epoch} an epoch)",
        "optimizer": f"{optimizer.optim}, learning rate {optimizer.learning_rate:g} "
        f"({config.schedule.lr_scheduler_type}), weight decay {optimizer.weight_decay:g}",
        **recompute,
        "output": where,
    }


def _peak_flops(compute_dtype: str) -> float:
    """FLOP/s of a large matrix product here, by the kernels and in the type that the run computes with."""
    size = 1024 if on_cpu() else 8192
    matrix = paddle.ones([size, size]).astype("float32" if compute_dtype == "fp32" else "bfloat16")

    def multiply() -> float:
        return float(linear(matrix, matrix)[0, 0])

    # Many short calls: the fastest of them met no other work on the machine.
    return measure_flops(multiply, 2.0 * size**3, repeats=20)


def _processes(plan: RunPlan) -> str:
    """How many, along which axes, and what each sends in a step."""
    estimate = plan.estimate
    sent: dict[str, int] = {}
    for rank in estimate.ranks:
        sent |= {axis: max(size, sent.get(axis, 0)) for axis, size in rank.sent.items()}
    listed = ", ".join(f"{axis} {size / 1e6:,.3g}" for axis, size in sent.items())
    return f"{axes_in_words(estimate.spread)}; each sends in a step at most, MB: {listed or 'nothing'}"


def _memory_line(memory: Mapping[str, int], available_bytes: int, whose: str = "") -> Text:
    causes = ", ".join(f"{cause} {gibibytes(size)}" for cause, size in memory.items() if size)
    total = sum(memory.values())
    fits = total <= available_bytes
    verdict = "fits" if fits else "DOES NOT FIT"
    text = Text(
        f"memory{whose} estimated at the peak {gibibytes(total)} of {gibibytes(available_bytes)} free: "
    )
    text.append(verdict, style="green" if fits else "bold red")
    text.append(f"\n  {causes}")
    return text


def gibibytes(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
