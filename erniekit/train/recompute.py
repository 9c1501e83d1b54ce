"""Recomputation of a run: what the keys ask for, or what `auto` finds to fit, applied and told."""

from collections.abc import Callable
from dataclasses import asdict, replace

from erniekit import assemble
from erniekit.config.config import Config
from erniekit.data.report import DataReport
from erniekit.estimate.flops import training_flops
from erniekit.estimate.low_precision import NOTHING, Added, fp8_bytes
from erniekit.estimate.memory import AdapterSize, training_memory
from erniekit.estimate.recompute import (
    GIB,
    cheapest_that_fits,
    limit_in_bytes,
    operator_costs,
    recomputed_flops,
)
from erniekit.estimate.state import BYTES
from erniekit.log import logger
from erniekit.ops.backend import current_backend, on_cpu
from erniekit.parallel.recomputation import Recomputation, choose_recomputation
from erniekit.train.planning import RunPlan


def recompute_as_asked(
    config: Config,
    built: assemble.Assembled,
    report: DataReport,
    free: Callable[[], int],
    plan: RunPlan | None = None,
) -> Recomputation:
    """Choose what is recomputed and apply it to the model.

    Args:
        free: bytes that this process may use, those it has included; asked for `recompute: auto` without
            `memory_limit_gb`.
        plan: of several processes, which all do what it found for `recompute: auto`.

    Raises:
        ConfigError: a layer or operator is named that the model does not have, or `auto` cannot fit.
    """
    keys = asdict(config.recompute)
    offload, limit_gb = keys.pop("offload_recompute_inputs"), keys.pop("memory_limit_gb")
    num_layers = built.config.num_hidden_layers
    automatic = keys["recompute"] == "auto"
    if automatic:
        keys["recompute"] = "false"
    chosen = _of_use(config, built, choose_recomputation(num_layers, **keys))
    if automatic and plan is not None:
        chosen = _of_use(config, built, plan.estimate.workload.recomputation or chosen)
        if not chosen.is_nothing():
            logger.info(f"recompute: auto: {chosen.words()}")
    elif automatic:
        limit = limit_in_bytes(free() if limit_gb is None else 0, memory_limit_gb=limit_gb)
        chosen = _automatic(config, built, report, limit, chosen)
    assemble.apply_recomputation(built, chosen, offload_recompute_inputs=offload)
    return chosen


def _of_use(config: Config, built: assemble.Assembled, chosen: Recomputation) -> Recomputation:
    """What of it there is to recompute: log-probabilities of pairs have a way of their own."""
    pairs = config.run.stage == "DPO"
    if pairs and chosen.head:
        logger.info(
            "recomputation of head and loss has no effect in stage: DPO: log-probabilities are computed "
            "again, chunk by chunk, in any case"
        )
    return replace(
        chosen, head=chosen.head and not pairs, mtp=chosen.mtp and _trained_ahead(config, built) > 0
    )


def _trained_ahead(config: Config, built: assemble.Assembled) -> int:
    """Blocks of multi-token prediction that are trained."""
    if config.run.stage == "DPO" or not config.routing.multi_token_pred_lambda:
        return 0
    return built.config.num_nextn_predict_layers


def step_memory(
    config: Config, built: assemble.Assembled, report: DataReport, recomputation: Recomputation | None = None
) -> dict[str, int]:
    """Bytes at the peak of a training step of this run, by cause."""
    rows, seq_len, attended = _shape(config, report)
    return training_memory(
        built.config,
        num_trained=built.num_trained,
        compute_type=built.compute_dtype,
        rows=rows,
        seq_len=seq_len,
        attended=attended,
        logits_rows=config.model.loss_subbatch_seqlen,
        on_cpu=on_cpu(),
        micro_batches=config.batch.gradient_accumulation_steps,
        attention_dropout=config.model.attention_probs_dropout_prob,
        native=current_backend() == "native",
        low_precision_moments=config.optimizer.use_lowprecision_moment,
        recomputation=recomputation,
        adapter=adapter_size(built),
        scheme=built.scheme,
        depths=_trained_ahead(config, built),
        added=_added(config, built, recomputation),
    )


def _added(config: Config, built: assemble.Assembled, recomputation: Recomputation | None) -> Added:
    """What arithmetic in few bits keeps."""
    width = BYTES[built.compute_dtype]
    if built.qat is not None and built.adapter is not None:
        layers = built.adapter.layers
        sizes = [layers[name].weight.size for name in built.qat.layers if name in layers]
        return Added(always=width * sum(map(int, sizes)))
    if built.fp8 is None:
        return NOTHING
    names = ("fp8_dequant_input", "fp8_swiglu_input", "fp8_shared_expert", "fp8_offline_quant_weight")
    found = fp8_bytes(
        built.config, width=width, **{name: getattr(config.low_precision, name) for name in names}
    )
    # Of layers that are run again little is kept either way.
    again = recomputation is not None and not recomputation.is_nothing()
    return Added(working=found.working, always=found.always) if again else found


def adapter_size(built: assemble.Assembled) -> AdapterSize | None:
    """What the adapter of a model adds to it, for `training_memory`."""
    if built.adapter is None:
        return None
    layers = built.adapter.layers.values()
    # A token has a row in every expert that it takes.
    rows = [built.config.moe_k if layer.lora_A.ndim == 3 else 1 for layer in layers]
    kept = [layer.kept_numbers() for layer in layers]
    return AdapterSize(
        sum(int(p.size) for layer in layers for p in (layer.lora_A, layer.lora_B)),
        *(sum(number * found[i] for number, found in zip(rows, kept, strict=True)) for i in (0, 1)),
    )


def _shape(config: Config, report: DataReport) -> tuple[int, int, float]:
    """Rows and columns of a micro-batch, and the tokens of the sample that a token belongs to."""
    sequences = config.sequences
    seq_len = sequences.max_seq_len if sequences.packing else max(report.lengths, default=1)
    attended = min(report.typical_length, sequences.max_seq_len)
    return config.batch.per_device_train_batch_size, seq_len, attended


def _automatic(
    config: Config, built: assemble.Assembled, report: DataReport, limit: float, start: Recomputation
) -> Recomputation:
    depths = _trained_ahead(config, built)
    numbers = built.config.with_ahead(depths)
    rows, seq_len, attended = _shape(config, report)
    native = current_backend() == "native"
    width = 4 if on_cpu() and not native else BYTES[built.compute_dtype]

    def memory(chosen: Recomputation) -> float:
        return sum(step_memory(config, built, report, chosen).values())

    chosen = cheapest_that_fits(
        numbers,
        memory,
        limit,
        costs={
            layer: operator_costs(numbers, layer, width=width, attended=attended, native=native)
            for layer in range(numbers.num_hidden_layers)
        },
        tokens=rows * seq_len,
        start=start,
    )
    again = recomputed_flops(numbers, chosen, attended=attended, labelled_share=report.trained_share)
    whole = training_flops(
        numbers,
        attended=attended,
        labelled_share=report.trained_share,
        trained_share=built.num_trained / built.num_parameters,
        ahead=depths > 0,
    )
    before, after = memory(start), memory(chosen)
    logger.info(
        f"recompute: auto: {chosen.words()}; estimated memory {after / GIB:.2f} GiB instead of "
        f"{before / GIB:.2f}, {limit / GIB:.2f} allowed; {100 * again / whole:.1f} % more arithmetic"
    )
    return chosen
