"""From a configuration to a run: puts data, model, optimizer, folder and loop together.

`train_session` and `eval_session` are all that the commands call. What is expensive comes after
what can be refused: configuration and folder first, then the data, the model last.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import paddle

from erniekit import assemble
from erniekit.checkpoint.sources import locate_model
from erniekit.checkpoint.store import Checkpoint
from erniekit.config.config import Config
from erniekit.config.load import LoadedConfig
from erniekit.data.pipeline import SampleReader, build_loader, iterate_eval, open_eval_samples, open_train_samples
from erniekit.data.template import load_template
from erniekit.data.tokenizer import Tokenizer, load_tokenizer
from erniekit.log import logger
from erniekit.models.registry import load_family
from erniekit.optim.build import build_optimizer
from erniekit.optim.schedules import build_schedule
from erniekit.train.evaluation import EvaluationPlan, EvaluationResult, evaluate
from erniekit.train.finish import write_outcome
from erniekit.train.nonfinite import NonFinitePolicy
from erniekit.train.objectives import Objective, build_objective
from erniekit.train.reporting import Reporter
from erniekit.train.run import RunFolder, choose_work, open_run, plan_steps
from erniekit.train.saving import SavingPlan
from erniekit.train.start_screen import show_start_screen
from erniekit.train.trainer import Trainer, memory_items

# Sections that decide what a run computes: a run continues only when none of these changed.
DECIDING = ("model", "train_data", "eval_data", "sequences", "batch", "optimizer", "schedule", "evaluation")
DECIDING_RUN_KEYS = ("stage", "seed")
# A backward pass costs twice the forward pass: gradients to the input and to the weight.
FORWARD_AND_BACKWARD = 3
# Keys of those sections that change when things happen or how fast, but no result.
NOT_DECIDING = ("dataloader_num_workers", "download_hub", "max_evaluate_steps")


def deciding_settings(config: Config) -> dict[str, Any]:
    """The keys and values that a run's result follows from."""
    settings = {key: getattr(config.run, key) for key in DECIDING_RUN_KEYS}
    for section in DECIDING:
        settings |= asdict(getattr(config, section))
    return {key: _plain(value) for key, value in settings.items() if key not in NOT_DECIDING}


def train_session(loaded: LoadedConfig) -> int:
    """Run what a `train` configuration asks for; returns the exit code."""
    config = loaded.config
    run = config.run
    work = choose_work(stage=run.stage, do_train=run.do_train, do_eval=run.do_eval)
    if not work.train:
        return eval_session(loaded)
    device = assemble.set_device(device=run.device, seed=run.seed)
    folder = locate_model(
        model_name_or_path=config.model.model_name_or_path, download_hub=config.model.download_hub
    )
    run_folder = open_run(
        loaded.to_yaml(),
        deciding_settings(config),
        config.saving.save_total_limit,
        output_dir=run.output_dir,
        overwrite_output_dir=run.overwrite_output_dir,
        resume_from_checkpoint=run.resume_from_checkpoint,
    )
    reader = open_reader(config, folder)
    samples = open_train_samples(reader, seed=run.seed, **asdict(config.train_data))
    eval_batches = open_eval_batches(config, reader)
    loader = build_loader(samples, seed=run.seed, **_loader_fields(config))
    start = run_folder.start_from
    built = _build_model(config, start.path if start else folder, resumed=start is not None)
    trainer = _build_trainer(config, run_folder, built, loader, eval_batches, reader.tokenizer)
    if start is not None:
        trainer.resume(start, lambda checkpoint: trainer.optimizer.load_state(checkpoint.tensors("optimizer")))
    show_start_screen(config, built, trainer, samples, reader.tokenizer, device=device)
    before = _evaluate_before(trainer)
    code = trainer.run()
    if code == 0:
        write_outcome(run_folder, trainer, config, before=before)
    return code


def eval_session(loaded: LoadedConfig) -> int:
    """Evaluate the model of a configuration on its held-out set, and print the figures."""
    config = loaded.config
    assemble.set_device(device=config.run.device, seed=config.run.seed)
    folder = locate_model(
        model_name_or_path=config.model.model_name_or_path, download_hub=config.model.download_hub
    )
    reader = open_reader(config, folder)
    batches = open_eval_batches(config, reader)
    built = assemble.load_for_inference(folder, compute_type=config.model.compute_type)
    result = evaluate(built.model, batches(), _objective(config))
    logger.info(f"{folder}: {result}")
    return 0


def open_reader(config: Config, folder: Path) -> SampleReader:
    """The reader that turns rows into samples with the model's tokenizer and template."""
    tokenizer = load_tokenizer(Path(config.model.tokenizer) if config.model.tokenizer else folder)
    sequences = config.sequences
    template = load_template(tokenizer, chat_template=sequences.chat_template)
    return SampleReader(
        tokenizer,
        template,
        stage=config.run.stage,
        max_seq_len=sequences.max_seq_len,
        overlong=sequences.overlong,
        skip_bad_rows=sequences.skip_bad_rows,
        use_template=sequences.use_template,
    )


def open_eval_batches(config: Config, reader: SampleReader) -> Callable[[], Iterator[Any]] | None:
    """A function that walks over the held-out batches anew each time; None without eval_dataset_path."""
    if not config.eval_data.eval_dataset_path:
        return None
    samples = open_eval_samples(reader, **asdict(config.eval_data))
    limit = config.evaluation.max_evaluate_steps

    def batches() -> Iterator[Any]:
        every = iterate_eval(samples, config.batch.per_device_eval_batch_size)
        return islice(every, limit) if limit > 0 else every

    return batches


def _objective(config: Config) -> Objective:
    return build_objective(
        stage=config.run.stage,
        loss_subbatch_seqlen=config.model.loss_subbatch_seqlen,
        use_sparse_head_and_loss_fn=config.model.use_sparse_head_and_loss_fn,
    )


def _build_model(config: Config, folder: Path, *, resumed: bool) -> assemble.Assembled:
    model = config.model
    return assemble.build_model(
        folder,
        continue_training=model.continue_training or resumed,
        compute_type=model.compute_type,
        fine_tuning=model.fine_tuning,
        hidden_dropout_prob=model.hidden_dropout_prob,
        attention_probs_dropout_prob=model.attention_probs_dropout_prob,
        freeze=model.freeze,
    )


def _build_trainer(
    config: Config,
    run_folder: RunFolder,
    built: assemble.Assembled,
    loader: Any,
    eval_batches: Callable[[], Iterator[Any]] | None,
    tokenizer: Tokenizer,
) -> Trainer:
    total_steps = plan_steps(
        loader.steps_per_epoch, num_train_epochs=config.batch.num_train_epochs, max_steps=config.batch.max_steps
    )
    objective = _objective(config)
    family = load_family(built.config)
    reporting = asdict(config.reporting)
    policy = NonFinitePolicy(**{key: reporting.pop(key) for key in ("on_nonfinite", "max_skipped_steps")})
    flops = built.config.flops_per_token(config.sequences.max_seq_len) * FORWARD_AND_BACKWARD
    return Trainer(
        model=built.model,
        objective=objective,
        loader=loader,
        optimizer=build_optimizer(list(built.model.named_parameters()), **asdict(config.optimizer)),
        schedule=build_schedule(config.optimizer.learning_rate, total_steps, **asdict(config.schedule)),
        store=run_folder.store,
        reporter=Reporter(run_folder.path, total_steps, flops, **reporting),
        evaluation=EvaluationPlan(**asdict(config.evaluation)),
        saving=SavingPlan(**asdict(config.saving)),
        nonfinite=policy,
        evaluate=(lambda: evaluate(built.model, eval_batches(), objective)) if eval_batches else None,
        write_model_files=lambda folder: write_model_files(folder, built.config, tokenizer, run_folder.path),
        model_items=lambda: family.save_layout(memory_items(built.model), built.config, "hf"),
        total_steps=total_steps,
        seed=config.run.seed,
        hidden_dropout_prob=config.model.hidden_dropout_prob,
        attention_probs_dropout_prob=config.model.attention_probs_dropout_prob,
        dropout_warmup_steps=config.model.dropout_warmup_steps,
    )


def _plain(value: Any) -> Any:
    """A value as YAML gives it back."""
    return list(value) if isinstance(value, tuple) else value
