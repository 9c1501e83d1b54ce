"""From a configuration to a run: puts data, model, optimizer, folder and loop together.

`train_session` and `eval_session` are all that the commands call. What is expensive comes after
what can be refused: configuration and folder first, then the data, the model last.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniekit import assemble
from erniekit.checkpoint.sources import companions_folder, locate_adapters, locate_model
from erniekit.checkpoint.store import Checkpoint
from erniekit.config.config import Config
from erniekit.data.loader import Loader
from erniekit.data.pack import BatchShape
from erniekit.data.pipeline import (
    EvalSamples,
    build_loader,
    iterate_eval,
    open_eval_samples,
    open_train_samples,
)
from erniekit.data.reader import READER_KEYS, SampleReader, open_reader
from erniekit.data.report import DataReport
from erniekit.data.sets import TrainSamples
from erniekit.errors import ConfigError
from erniekit.estimate.flops import training_flops
from erniekit.log import logger
from erniekit.low_precision import apply_fp8, apply_qat, check_qat
from erniekit.models.registry import load_family, read_model_config, read_vision_tokens
from erniekit.optim.build import build_optimizer
from erniekit.optim.schedules import build_schedule
from erniekit.parallel.mesh import Mesh
from erniekit.parallel.pipeline import PipelineEngine
from erniekit.parallel.recomputation import Recomputation
from erniekit.parallel.rendezvous import own_place
from erniekit.parallel.sharding import Sharing
from erniekit.train.contents import checkpoint_contents
from erniekit.train.devices import (
    free_memory,
    known_numbers,
    require_devices,
    run_identity,
    state_of,
)
from erniekit.train.dropout import DropoutWarmup
from erniekit.train.evaluation import EvaluationPlan, EvaluationResult, evaluate
from erniekit.train.finish import write_outcome
from erniekit.train.nonfinite import NonFinitePolicy
from erniekit.train.objectives import Objective, build_objective
from erniekit.train.pipelining import build_engine
from erniekit.train.planning import RunPlan, check_plan, machine_of, plan_run
from erniekit.train.preference import held_out_objective, moving_reference, preference_objective
from erniekit.train.processes import Crew, open_processes
from erniekit.train.recompute import recompute_as_asked
from erniekit.train.reporting import Quiet, Reporter, resident_memory
from erniekit.train.routing import RouterWatch, watch_routers
from erniekit.train.run import RunFolder, choose_work, open_run, plan_steps, require_same_rows
from erniekit.train.saving import SavingPlan
from erniekit.train.shared_contents import PlacedTensors
from erniekit.train.shared_routers import share_routers
from erniekit.train.start_screen import show_start_screen
from erniekit.train.step_loss import StepLoss
from erniekit.train.team import ALONE, Team
from erniekit.train.trainer import Trainer

if TYPE_CHECKING:
    from erniekit.config.load import LoadedConfig

# Sections that decide what a run computes: a run continues only when none of their keys changed,
# but for those that change when or how fast something happens.
DECIDING = (
    *("model", "train_data", "eval_data", "sequences", "batch"),
    *("optimizer", "routing", "low_precision", "qat", "schedule", "evaluation"),
)
NOT_DECIDING = (
    *("download_hub", "dataloader_num_workers", "do_train", "do_eval"),
    *("max_estimate_samples", "ref_logps"),
    *("fp8_offline_quant_weight", "enable_fp8_quantize_analysis"),
    # Their product with the processes decides: `run.require_same_rows`.
    *("per_device_train_batch_size", "gradient_accumulation_steps"),
)


def train_session(loaded: "LoadedConfig") -> int:
    """Run what a `train` configuration asks for; returns the exit code."""
    config = loaded.config
    run = config.run
    work = choose_work(stage=run.stage, do_train=run.do_train, do_eval=run.do_eval)
    if not work.train:
        found = eval_session(config, find_model(config), locate_adapters(lora_path=config.lora.lora_path))
        logger.info(found.in_words())
        return 0
    device = assemble.set_device(device=run.device, seed=run.seed, kernels=run.kernels)
    require_devices(
        lambda: state_of_run(config), lambda: free_memory(device), own_place()[1], **asdict(config.parallel)
    )
    mesh = _mesh(config, loaded)
    folder = find_model(config)
    reader = reader_of(config, folder)
    samples = open_train_samples(reader, run.seed, **asdict(config.train_data))
    held_out = open_held_out(config, reader)
    run_folder = open_run(
        loaded.to_yaml(),
        deciding_settings(config),
        config.saving.save_total_limit,
        None if mesh is None else Crew(mesh),
        output_dir=run.output_dir,
        overwrite_output_dir=run.overwrite_output_dir,
        resume_from_checkpoint=run.resume_from_checkpoint,
    )
    for line in samples.report.lines():
        logger.info(line)
    replicas, parts = _sharers(config, mesh)
    loader = build_loader(
        samples, BatchShape(**_shape(config)), run.seed, replicas, parts, **_packing(config)
    )
    start = run_folder.start_from
    if start is not None and run.resume_from_checkpoint == "auto":
        require_same_rows(start, loader.rows_per_step, replicas, config.batch.per_device_train_batch_size)
    plan = _plan(config, folder, mesh, samples.report, device)
    pipeline = plan if plan is not None and plan.is_cut else None
    built = _build_model(config, folder, start.path if start else None, mesh, pipeline)
    built = _in_few_bits(config, built, _total_steps(config, loader), start.path if start else None)
    chosen = recompute_as_asked(
        config, built, samples.report, lambda: free_memory(device) + resident_memory()[0], plan
    )
    engine = None
    if pipeline is not None:
        engine = build_engine(pipeline, built, sequence_parallel=config.parallel.sequence_parallel)
    objective: Objective
    if run.stage == "DPO":
        needed = lambda: _needed_batches(config, samples, held_out, loader, mesh)  # noqa: E731
        objective = preference_objective(config, built, folder, needed, engine, resumed=start is not None)
    else:
        objective = _objective(config, chosen)
    trainer = _build_trainer(
        config, run_folder, built, loader, held_out, reader, samples.report, folder, objective, engine
    )
    if start is not None:
        trainer.resume(start, lambda checkpoint: _load_optimizer(trainer, checkpoint))
        moving = moving_reference(objective)
        if moving is not None:
            moving.load(start.path)
    if trainer.team.is_first:
        show_start_screen(
            config,
            built,
            trainer,
            samples.report,
            chosen,
            sample=samples.first_samples(1)[0],
            tokenizer=reader.tokenizer,
            device=device,
            plan=plan,
        )
    try:
        code = trainer.run()
    finally:
        loader.close()
    if code == 0 and trainer.team.is_first:
        write_outcome(run_folder, trainer, config, built)
    return code


def eval_session(config: Config, folder: Path, adapters: Sequence[Path] = ()) -> EvaluationResult:
    """Evaluate a model folder on the held-out set of a configuration, and tell the figures.

    Args:
        adapters: the first one is put on the model.
    """
    run = config.run
    assemble.set_device(device=run.device, seed=run.seed, kernels=run.kernels)
    degrees = [f"{k}: {v}" for k, v in asdict(config.parallel).items() if k.endswith("_degree") and v > 1]
    if degrees:
        logger.info(
            f"evaluated in one process, whose memory has to do: {', '.join(degrees)} are for training"
        )
    reader = reader_of(config, folder)
    samples = open_eval_samples(reader, **asdict(config.eval_data))
    objective: Objective
    if run.stage == "DPO":
        objective = held_out_objective(config, find_model(config), _batches(config, samples))
    else:
        objective = _objective(config)
    built = assemble.load_for_inference(folder, adapters, compute_type=config.model.compute_type)
    watch = RouterWatch(built.model)
    result = evaluate(built.model, _batches(config, samples), objective, watch)
    return replace(result, routers=tuple(watch.figures()))


def state_of_run(config: Config) -> dict[str, int] | None:
    """Bytes of weights, gradients and optimizer state, where the model's numbers are known already."""
    model = config.model
    numbers = known_numbers(model.model_name_or_path)
    if numbers is None:
        return None
    if model.num_nextn_predict_layers is not None:
        numbers = numbers.with_ahead(model.num_nextn_predict_layers)
    # Adapters are small beside what they are on, which is not trained itself.
    freeze = model.freeze if model.fine_tuning == "Full" else (".",)
    compute_dtype, scheme = assemble.number_types(model.compute_type)
    return state_of(numbers, freeze, compute_dtype, scheme)


def find_model(config: Config) -> Path:
    """The folder of the configuration's model."""
    model = config.model
    return locate_model(model_name_or_path=model.model_name_or_path, download_hub=model.download_hub)


def reader_of(config: Config, folder: Path) -> SampleReader:
    """The reader that turns rows into samples with the model's tokenizer and template."""
    sequences = config.sequences
    return open_reader(
        companions_folder(folder),
        config.run.stage,
        read_vision_tokens(folder),
        tokenizer=config.model.tokenizer,
        **{key: getattr(sequences, key) for key in READER_KEYS},
    )


def open_held_out(config: Config, reader: SampleReader) -> EvalSamples | None:
    """The held-out set, when the run evaluates."""
    if config.evaluation.evaluation_strategy == "no" or not config.eval_data.eval_dataset_path:
        return None
    return open_eval_samples(reader, **asdict(config.eval_data))


def deciding_settings(config: Config) -> dict[str, Any]:
    """The keys and values that a run's result follows from, as YAML gives them back."""
    settings = {"stage": config.run.stage, "seed": config.run.seed}
    for section in DECIDING:
        settings |= asdict(getattr(config, section))
    if config.model.fine_tuning != "Full":
        settings |= asdict(config.lora)
    if config.run.stage == "DPO":
        settings |= asdict(config.preference)
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    return {key: value for key, value in plain.items() if key not in NOT_DECIDING}


def _sharers(config: Config, mesh: Mesh | None) -> tuple[int, int]:
    """Processes that share the micro-batches of a step, and those that share the columns of a row."""
    if mesh is None:
        return 1, 1
    layout = mesh.layout
    return mesh.batch.size, layout.context * (layout.tensor if config.parallel.sequence_parallel else 1)


def _batches(config: Config, samples: EvalSamples, mesh: Mesh | None = None) -> Iterator[Any]:
    sequences, limit = config.sequences, config.evaluation.max_evaluate_steps
    every = iterate_eval(
        samples,
        BatchShape(**_shape(config)),
        _sharers(config, mesh)[1],
        max_seq_len=sequences.max_seq_len,
        packing=sequences.packing,
    )
    return islice(every, limit) if limit > 0 else every


def _needed_batches(
    config: Config,
    samples: TrainSamples,
    held_out: EvalSamples | None,
    loader: Loader,
    mesh: Mesh | None,
) -> Iterator[Any]:
    """Every batch that the run will see, from a loader of its own."""
    packing = {**_packing(config), "dataloader_num_workers": 0}
    sharers = _sharers(config, mesh)
    probe = build_loader(samples, BatchShape(**_shape(config)), config.run.seed, *sharers, **packing)
    for _ in range(_total_steps(config, loader)):
        yield from probe.next_step()
    if held_out is not None:
        yield from _batches(config, held_out, mesh)


def _shape(config: Config) -> dict[str, int]:
    batch = config.batch
    return {
        "per_device_train_batch_size": batch.per_device_train_batch_size,
        "per_device_eval_batch_size": batch.per_device_eval_batch_size,
        "gradient_accumulation_steps": batch.gradient_accumulation_steps,
    }


def _packing(config: Config) -> dict[str, Any]:
    keys = ("max_seq_len", "packing", "buffer_size", "pad_to_max_seqlen", "dataloader_num_workers")
    return {key: getattr(config.sequences, key) for key in keys}


def _objective(config: Config, recomputation: Recomputation | None = None) -> Objective:
    return build_objective(
        config.run.stage,
        recomputation is not None and recomputation.head,
        loss_subbatch_seqlen=config.model.loss_subbatch_seqlen,
        use_sparse_head_and_loss_fn=config.model.use_sparse_head_and_loss_fn,
    )


def _step_loss(config: Config, built: assemble.Assembled, objective: Objective) -> StepLoss:
    routing = asdict(config.routing)
    own = {key: routing.pop(key) for key in ("token_balance_loss", "multi_token_pred_lambda")}
    has_routers = any(map(built.config.is_moe_layer, range(built.config.num_hidden_layers)))
    companions: list[Any] = [*watch_routers(built.model, config.run.stage, has_routers, **routing)]
    if built.spread is not None:
        for routers in companions:
            share_routers(routers, built.spread, sequence_parallel=config.parallel.sequence_parallel)
    companions += [each for each in (built.fp8, built.qat, moving_reference(objective)) if each is not None]
    # Preference training leaves the blocks of multi-token prediction out.
    depths = 0 if config.run.stage == "DPO" else built.config.num_nextn_predict_layers
    return StepLoss(objective, companions, depths, **own)


def _total_steps(config: Config, loader: Loader) -> int:
    batch = config.batch
    return plan_steps(
        loader.steps_per_epoch, num_train_epochs=batch.num_train_epochs, max_steps=batch.max_steps
    )


def _in_few_bits(
    config: Config, built: assemble.Assembled, total_steps: int, resumed: Path | None
) -> assemble.Assembled:
    built = apply_fp8(built, **asdict(config.low_precision))
    return apply_qat(built, total_steps, resumed, **asdict(config.qat))


def _mesh(config: Config, loaded: "LoadedConfig") -> Mesh | None:
    """The places of the processes, where there are several."""
    if own_place()[1] == 1:
        return None
    mesh = open_processes(
        asdict(config.parallel), run_identity(config.values()), ddp_timeout=config.run.ddp_timeout
    )
    check_qat(
        config.qat.qat_scheme, mesh.layout, config.parallel.sharding, learned=config.qat.qat_learn_scales
    )
    return mesh


def _load_optimizer(trainer: Trainer, checkpoint: Checkpoint) -> None:
    tensors, team = checkpoint.tensors("optimizer"), trainer.team
    if team.spread is None:
        trainer.optimizer.load_state(tensors)
        return
    held = frozenset(trainer.optimizer.names())
    trainer.optimizer.load_state(PlacedTensors(tensors, team.placements(), held))


def _plan(config: Config, folder: Path, mesh: Mesh | None, report: DataReport, device: str) -> RunPlan | None:
    """What several processes hold and send, checked and told."""
    if mesh is None:
        return None
    machine = machine_of(config, mesh.world, device)
    plan = plan_run(config, read_model_config(folder), mesh.layout, report, machine)
    check_plan(plan, tells=mesh.world.rank == 0)
    return plan


def _team(config: Config, built: assemble.Assembled, engine: PipelineEngine | None) -> Team:
    if built.spread is None:
        return ALONE
    sharing = Sharing(
        built.model,
        load_family(built.config).plan,
        built.spread,
        int(config.parallel.sharding[-1:] or 0),
        overlap=engine is None,
        part_trained=built.adapter is None,
    )
    return Team(built.spread, sharing, engine)


def _build_model(
    config: Config,
    folder: Path,
    resumed: Path | None,
    mesh: Mesh | None = None,
    pipeline: RunPlan | None = None,
) -> assemble.Assembled:
    """The model to train; a checkpoint that is continued is the whole model, or the adapter on it."""
    model = config.model
    adaptation = None
    if model.fine_tuning != "Full":
        keys = asdict(config.lora)
        path = keys.pop("lora_path")
        start = [resumed] if resumed is not None else locate_adapters(lora_path=path)
        adaptation = assemble.Adaptation(keys, start[0] if start else None)
    elif resumed is not None:
        folder = resumed
    _check_ahead(config, folder)
    return assemble.build_model(
        folder,
        adaptation,
        mesh,
        continue_training=model.continue_training or resumed is not None,
        compute_type=model.compute_type,
        fine_tuning=model.fine_tuning,
        hidden_dropout_prob=model.hidden_dropout_prob,
        attention_probs_dropout_prob=model.attention_probs_dropout_prob,
        freeze=model.freeze,
        sequence_parallel=config.parallel.sequence_parallel,
        num_nextn_predict_layers=model.num_nextn_predict_layers,
        stages=() if pipeline is None else pipeline.stages,
        places=() if pipeline is None else pipeline.places,
        # A reference is computed with the model before anything is shared.
        in_ranges=config.parallel.sharding == "stage3" and config.run.stage != "DPO",
    )


def _check_ahead(config: Config, folder: Path) -> None:
    """Refuse new blocks of multi-token prediction that nothing would train."""
    asked, untrained = config.model.num_nextn_predict_layers or 0, config.routing.multi_token_pred_lambda == 0
    if (config.run.stage != "DPO" and not untrained) or asked == 0:
        return
    has = read_model_config(folder).num_nextn_predict_layers
    if asked > has:
        why = "multi_token_pred_lambda: 0" if untrained else "stage: DPO"
        raise ConfigError(
            f"num_nextn_predict_layers: {asked}: the model has {has}, and {why} would leave the new blocks "
            f"untrained; write {has}, or leave the key out"
        )


def _build_trainer(
    config: Config,
    run_folder: RunFolder,
    built: assemble.Assembled,
    loader: Any,
    held_out: EvalSamples | None,
    reader: SampleReader,
    report: DataReport,
    source: Path,
    objective: Objective,
    engine: PipelineEngine | None = None,
) -> Trainer:
    model, total_steps = config.model, _total_steps(config, loader)
    reporting = asdict(config.reporting)
    policy = NonFinitePolicy(**{key: reporting.pop(key) for key in ("on_nonfinite", "max_skipped_steps")})
    flops = training_flops(
        built.config,
        attended=report.typical_length,
        labelled_share=report.trained_share if model.use_sparse_head_and_loss_fn else 1.0,
        trained_share=built.num_trained / built.num_parameters,
        ahead=config.routing.multi_token_pred_lambda > 0,
    )
    team = _team(config, built, engine)
    beside = built.adapter or built.qat  # the second has none under adapters
    evaluate_now: Callable[[], EvaluationResult] | None = None
    if held_out is not None:
        evaluate_now = lambda: evaluate(  # noqa: E731
            built.model,
            _batches(config, held_out, None if built.spread is None else built.spread.mesh),
            objective,
            team=team,
        )
    return Trainer(
        model=built.model,
        step_loss=_step_loss(config, built, objective),
        loader=loader,
        optimizer=build_optimizer(
            [*built.model.named_parameters(), *(built.qat.parameters().items() if built.qat else ())],
            beside.learning_rate_ratios() if beside else None,
            team.held(),
            None if built.spread is None else built.spread.names,
            **asdict(config.optimizer),
        ),
        schedule=build_schedule(config.optimizer.learning_rate, total_steps, **asdict(config.schedule)),
        store=run_folder.store,
        reporter=(Reporter if team.is_first else Quiet)(run_folder.path, total_steps, flops, **reporting),
        evaluation=EvaluationPlan(**asdict(config.evaluation)),
        saving=SavingPlan(**asdict(config.saving)),
        nonfinite=policy,
        evaluate=evaluate_now,
        contents=checkpoint_contents(
            built, reader.tokenizer, source, model.model_name_or_path, moving_reference(objective)
        ),
        dropout=DropoutWarmup(
            built.model,
            model.hidden_dropout_prob,
            model.attention_probs_dropout_prob,
            dropout_warmup_steps=model.dropout_warmup_steps,
        ),
        total_steps=total_steps,
        seed=config.run.seed,
        team=team,
    )
