"""The one place where configuration meets a model.

Order, fixed: build -> load, quantising weights that stay frozen -> adapt -> recompute. Over several
processes a model is distributed before it has weights: build -> adapt -> distribute -> load, quantising ->
recompute -> shard; so no process holds more than its part. Each stage logs what it touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniekit.checkpoint.adapter_files import is_adapter, open_adapter
from erniekit.checkpoint.fingerprint import Fingerprint
from erniekit.checkpoint.raw import load_weights
from erniekit.checkpoint.sources import base_folder
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.log import logger
from erniekit.low_precision import PADDLE_TYPES, build_kept, build_quantised, scheme_of
from erniekit.models.registry import load_family, read_model_config
from erniekit.optim.freeze import apply_freeze
from erniekit.parallel.recomputation import Recomputation
from erniekit.quant.folder import read_quantisation
from erniekit.quant.schemes import WHILE_READ

if TYPE_CHECKING:
    from erniekit.parallel.distribute import Distribution
    from erniekit.parallel.mesh import Mesh

# fine_tuning -> the layer that takes the place of a linear one; None trains the model as it is.
ADAPTERS: dict[str, str | None] = {
    "full": None,
    "lora": "erniekit.adapters.layers:LoraLinear",
    "dora": "erniekit.adapters.dora:DoraLinear",
    "pissa": "erniekit.adapters.pissa:PissaLinear",
}


@dataclass(frozen=True)
class Adaptation:
    """An adapter that is to be trained.

    Args:
        keys: keyword arguments of `adapters.lora.apply`.
        start: folder of an adapter to go on from.
    """

    keys: Mapping[str, Any] = field(default_factory=dict)
    start: Path | None = None


@dataclass(frozen=True)
class Assembled:
    """A model that is ready, with the numbers it was built from.

    Args:
        adapter: what is on it (an `adapters.lora.Applied`), or None.
        fingerprint: of the weights under an adapter, as they are in files.
        scheme: what the frozen weights are quantised by.
        fp8: the layers that compute in FP8 (a `quant.fp8.Fp8Training`), or None.
        qat: those that train for a scheme (a `quant.qat.QuantisationAware`), or None.
        spread: how the model lies over several processes.
    """

    model: Any
    config: Any
    compute_dtype: str
    num_parameters: int
    num_trained: int
    adapter: Any = None
    fingerprint: str | None = None
    scheme: str | None = None
    fp8: Any = None
    qat: Any = None
    spread: "Distribution | None" = None

    def numbers_in_words(self) -> str:
        """Number types of weights and arithmetic."""
        words = _in_words(self.compute_dtype, self.scheme)
        if self.qat is not None:
            return f"{words}, rounded to {self.qat.scheme}"
        return words if self.fp8 is None else f"{words}, MLPs in fp8"


def set_device(*, device: str, seed: int, kernels: str = "auto") -> str:
    """Choose device and kernels of this process and seed its generators; returns Paddle's name of the device.

    Raises:
        ConfigError: the device does not exist here.
        UnsupportedError: the kernels cannot run here.
    """
    import paddle

    from erniekit.ops.backend import use_kernels

    num_gpus = paddle.device.cuda.device_count() if paddle.device.is_compiled_with_cuda() else 0
    if device == "auto":
        device = "gpu" if num_gpus else "cpu"
    if device.startswith("gpu") and not num_gpus:
        raise ConfigError(
            f"device: {device} was asked for, but this Paddle sees no GPU; write device: cpu or auto"
        )
    paddle.device.set_device(device)
    use_kernels(kernels)
    paddle.seed(seed)
    return device


def number_types(compute_type: str) -> tuple[str, str | None]:
    """The type that is computed and stored in, and the scheme that frozen weights are quantised by, if any.

    `auto`, and every scheme, computes in bf16 where matrices are multiplied in it (GPUs, and CPUs with the
    instructions), else in fp32.
    """
    from erniekit.ops.backend import multiplies_bf16

    scheme = compute_type if compute_type in WHILE_READ else None
    if scheme is None and compute_type != "auto":
        return compute_type, None
    return "bf16" if multiplies_bf16() else "fp32", scheme


def numbers_in_words(compute_type: str) -> str:
    """What `Assembled.numbers_in_words` says of a model that is built so."""
    return _in_words(*number_types(compute_type))


def _in_words(compute_dtype: str, scheme: str | None) -> str:
    return compute_dtype if scheme is None else f"{scheme} with {compute_dtype}"


def build_model(
    folder: Path,
    adaptation: Adaptation | None = None,
    mesh: "Mesh | None" = None,
    stages: Sequence[tuple[int, int]] = (),
    places: Sequence[Sequence[int]] = (),
    in_ranges: bool = False,
    *,
    continue_training: bool,
    compute_type: str,
    fine_tuning: str,
    hidden_dropout_prob: float,
    attention_probs_dropout_prob: float,
    freeze: Sequence[str],
    sequence_parallel: bool = False,
    num_nextn_predict_layers: int | None = None,
) -> Assembled:
    """Build the model of `folder` for training.

    Args:
        folder: a model folder; with `continue_training=False` only its `config.json` is read and
            the weights are initialised at random.
        adaptation: the adapter, when `fine_tuning` asks for one.
        mesh: the processes that the model is spread over, where there are several.
        stages, places: of a pipeline, see `parallel.distribute`.
        num_nextn_predict_layers: blocks of multi-token prediction; None keeps those of the folder.
        in_ranges: keep only a range of every parameter that is read, for `parallel.sharding` in stage 3.

    Raises:
        CheckpointError: the folder or its tensors do not fit.
        ConfigError: a `freeze` pattern matches no parameter.
        UnsupportedError: `fine_tuning` or the model family is not built yet, or the memory does not do.
    """
    from erniekit.parallel import seeds

    if fine_tuning.lower() not in ADAPTERS:
        raise UnsupportedError(f"fine_tuning: {fine_tuning} is not built yet; write fine_tuning: Full")
    layer = ADAPTERS[fine_tuning.lower()]
    if mesh is not None:
        cut: dict[str, Any] = {
            "sequence_parallel": sequence_parallel,
            "stages": tuple(stages),
            "places": places,
        }
        built = _spread_out(
            *(folder, mesh, layer, adaptation),
            load=continue_training,
            compute_type=compute_type,
            num_ahead=num_nextn_predict_layers,
            in_ranges=in_ranges,
            **cut,
        )
    else:
        built = _build(folder, compute_type=compute_type, load=continue_training, adapted=layer is not None)
        if built.scheme is not None and fine_tuning.lower() in ("full", "pissa"):
            raise ConfigError(
                f"fine_tuning: {fine_tuning}: the weights of {folder} are in {built.scheme}, and few bits "
                "cannot be trained or taken apart; write fine_tuning: LoRA or DoRA, or name the model in full"
            )
        if num_nextn_predict_layers is not None:
            built = _with_ahead(built, num_nextn_predict_layers, adapted=layer is not None)
        if layer is not None:
            built = replace(built, adapter=_attach(built.model, built.config, layer, adaptation))
    if built.adapter is not None:
        _begin(built, adaptation)
    built.model.set_dropout(hidden_dropout_prob, attention_probs_dropout_prob)
    apply_freeze(built.model, freeze, built.spread)
    seeds.apply_seeds(built.model, load_family(built.config).plan)
    built.model.train()
    return _describe(built)


def load_for_inference(
    folder: Path,
    adapters: Sequence[Path] = (),
    mesh: "Mesh | None" = None,
    *,
    compute_type: str = "auto",
    scheme: str | None = None,
    sequence_parallel: bool = False,
) -> Assembled:
    """Build the model of `folder` with its weights, in evaluation mode, nothing trained.

    Args:
        folder: a model folder, or an adapter, which goes on the model that it was trained on.
        adapters: folders of adapters for the model; the first one is put on it, unmerged.
        mesh: the processes that a model without adapters is spread over, where there are several.
        scheme: what weights are quantised by, where `compute_type` only says what is computed in.

    Raises:
        CheckpointError: an adapter was trained on other weights.
    """
    if is_adapter(folder):
        adapters, folder = (folder, *adapters), base_folder(folder)
    if mesh is not None:
        built = _spread_out(folder, mesh, compute_type=compute_type, sequence_parallel=sequence_parallel)
    else:
        built = _build(folder, compute_type=compute_type, load=True, adapted=bool(adapters), scheme=scheme)
    if adapters:
        built = put_on(built, adapters[0])
        for other in adapters[1:]:
            check_base(built, other)
    for parameter in built.model.parameters():
        parameter.stop_gradient = True
    built.model.eval()
    return _describe(built)


def _with_ahead(built: Assembled, number: int, *, adapted: bool) -> Assembled:
    """The model with this number of blocks of multi-token prediction."""
    config = built.config.with_ahead(number)
    if number == built.config.num_nextn_predict_layers:
        return built
    _tell_ahead(built.config.num_nextn_predict_layers, number, adapted=adapted)
    built.model.set_num_ahead(number)
    return replace(built, config=config)


def _tell_ahead(has: int, number: int, *, adapted: bool) -> None:
    """Say what becomes of the blocks of multi-token prediction."""
    if number > has and adapted:
        raise ConfigError(
            f"num_nextn_predict_layers: {number}: the model has {has}, and under an adapter new blocks would "
            f"stay as they are drawn; write {has} or fewer, or fine_tuning: Full"
        )
    if number > has:
        logger.info(f"multi-token prediction: {number - has} new blocks of fresh weights")
    else:
        logger.info(f"multi-token prediction: {has - number} of {has} blocks are left out, and not saved")


def put_on(built: Assembled, folder: Path) -> Assembled:
    """The model with the adapter of a folder on it, unmerged, in place of the one that is there.

    Raises:
        CheckpointError: the adapter was trained on other weights, or is of another model.
    """
    from erniekit.adapters.state import attach_file

    check_base(built, folder)
    built = take_off(built)
    applied = attach_file(built.model, _layout(built.config), open_adapter(folder))
    trained_on = open_adapter(folder).facts.get("scheme")
    if trained_on != built.scheme:
        logger.info(
            f"adapter {folder}: trained on weights in {trained_on or 'full'}, and these are in "
            f"{built.scheme or 'full'}; compute_type says in which"
        )
    logger.info(
        f"adapter {folder}: {applied.num_parameters():,} parameters on {len(applied.layers)} matrices"
    )
    return replace(built, adapter=applied)


def take_off(built: Assembled) -> Assembled:
    """The model without its adapter."""
    from erniekit.adapters.lora import detach

    if built.adapter is not None:
        detach(built.adapter)
    return replace(built, adapter=None)


def apply_recomputation(
    built: Assembled, chosen: Recomputation, *, offload_recompute_inputs: bool = False
) -> list[str]:
    """Make parts of the model recompute in the backward pass; returns the paths of their methods.

    Raises:
        ConfigError: an operator was named that the model does not have.
    """
    from erniekit.parallel.recompute import apply_recompute

    plan = load_family(built.config).plan
    spread = built.spread
    of_all = None if spread is None else lambda touched: spread.of_all_stages(dict.fromkeys(touched))
    return apply_recompute(
        built.model, plan, chosen, of_all, offload_recompute_inputs=offload_recompute_inputs
    )


def check_base(built: Assembled, folder: Path) -> None:
    """Refuse an adapter that was trained on other weights; one from elsewhere does not say.

    Raises:
        CheckpointError: the fingerprints differ.
    """
    adapter = open_adapter(folder)
    trained_on = adapter.facts.get("fingerprint")
    if trained_on is not None and built.fingerprint is not None and trained_on != built.fingerprint:
        raise CheckpointError(
            f"{folder}: the adapter was trained on other weights (of {adapter.settings.base}, "
            f"{trained_on[:19]}...; these are {built.fingerprint[:19]}...): with these it would give answers "
            "that nobody trained; name the model that it was trained on"
        )


def _attach(model: Any, config: Any, layer: str, adaptation: Adaptation | None) -> Any:
    """Put an adapter on a model, which may have no weights yet."""
    from erniekit.adapters import lora

    assert adaptation is not None, f"{layer} without an adapter"
    module, _, name = layer.partition(":")
    return lora.apply(model, _layout(config), getattr(import_module(module), name), **adaptation.keys)


def _begin(built: Assembled, adaptation: Adaptation | None) -> None:
    """Begin a new adapter, or go on from one."""
    from erniekit.adapters import state

    if adaptation is None or adaptation.start is None:
        built.adapter.initialise()
    else:
        check_base(built, adaptation.start)
        state.load(built.adapter, open_adapter(adaptation.start))


def _layout(config: Any) -> Any:
    """What a parameter's matrices are called in files, for adapters."""
    family = load_family(config)
    return lambda parameter, shape: family.names_in_files(parameter, shape, config)


def _build(
    folder: Path, *, compute_type: str, load: bool, adapted: bool = False, scheme: str | None = None
) -> Assembled:
    from erniekit.ops.allocation import release_free_memory

    if is_adapter(folder):
        raise CheckpointError(
            f"{folder} holds an adapter and no model: name the model, and the adapter as lora_path={folder}"
        )
    compute_dtype, named = number_types(compute_type)
    scheme = scheme or named
    config = read_model_config(folder)
    kept = read_quantisation(folder) if load else None
    if kept is not None:
        scheme = scheme_of(kept, scheme, folder, adapted=adapted)
    _require_memory(config, compute_dtype, scheme, folder)
    family = load_family(config)
    fingerprint = None
    if kept is not None:
        model, fingerprint = build_kept(folder, config, compute_dtype, kept)
    elif scheme is not None:
        assert load, f"compute_type: {scheme} without weights"
        model, fingerprint = build_quantised(folder, config, compute_dtype, scheme)
    elif load:
        model = family.build(config, dtype=compute_dtype)
        items = family.weights.load_weights(folder, config)
        taken = Fingerprint()
        load_weights(model, taken.watch(items) if adapted else items)
        fingerprint = taken.text() if adapted else None
    else:
        model = family.build(config, dtype=compute_dtype)
        model.initialise_weights()
    release_free_memory()
    return Assembled(model, config, compute_dtype, 0, 0, fingerprint=fingerprint, scheme=scheme)


def _spread_out(
    folder: Path,
    mesh: "Mesh",
    layer: str | None = None,
    adaptation: Adaptation | None = None,
    *,
    compute_type: str,
    load: bool = True,
    num_ahead: int | None = None,
    in_ranges: bool = False,
    **cut: Any,
) -> Assembled:
    """The model over several processes; each has memory for what it holds, and none for the rest."""
    import paddle

    from erniekit.parallel import comm
    from erniekit.parallel.distribute import distribute
    from erniekit.parallel.placement import placed_items
    from erniekit.parallel.sharding import keep_ranges
    from erniekit.quant import weight_only

    compute_dtype, scheme = number_types(compute_type)
    stored = read_model_config(folder)
    config = stored if num_ahead is None else stored.with_ahead(num_ahead)
    if config != stored:
        _tell_ahead(
            stored.num_nextn_predict_layers, config.num_nextn_predict_layers, adapted=layer is not None
        )
    family = load_family(config)
    with paddle.LazyGuard():
        model = family.build(config, dtype=compute_dtype)
    applied = None if layer is None else _attach(model, config, layer, adaptation)
    shapes = family.weights.memory_shapes
    waiting = weight_only.chosen_weights(model, family.plan.ROLES, scheme) if scheme else {}
    # Adapters that begin with the weights they are on need them whole.
    in_ranges = in_ranges and load and not scheme and applied is None
    spread = distribute(
        model, family.plan, mesh, waiting=shapes(stored) if in_ranges else waiting.keys(), **cut
    )
    held = spread.placements
    fingerprint = None
    if load:
        items, taken = family.weights.load_weights(folder, stored), Fingerprint()
        if applied is not None and mesh.world.rank == 0:
            items = taken.watch(items)
        if scheme is not None:
            items = weight_only.apply(
                *(model, family.plan.ROLES, scheme, items),
                dtype=PADDLE_TYPES[compute_dtype],
                placements=held,
            )
        items = placed_items(items, held)
        if in_ranges:
            items = keep_ranges(items, model, family.plan, spread)
        load_weights(model, items, those=shapes(stored))
        if applied is not None:
            fingerprint = comm.broadcast_object(taken.text(), mesh.world)
    else:
        model.initialise_weights(shapes=shapes(stored), placements=held)
    added = shapes(config).keys() - shapes(stored).keys()
    if added:
        model.initialise_weights(added, shapes=shapes(config), placements=held)
    if applied is not None:
        if not load:  # the numbers that follow the weights'
            for adapted in applied.layers.values():
                adapted.draw()
        applied.spread(held)
    return Assembled(model, config, compute_dtype, 0, 0, applied, fingerprint, scheme, spread=spread)


def _require_memory(config: Any, compute_dtype: str, scheme: str | None, folder: Path) -> None:
    """Refuse weights that cannot lie in this machine's memory, before any of it is taken."""
    from erniekit.estimate.hardware import available_memory
    from erniekit.estimate.state import gigabytes, model_bytes
    from erniekit.ops.backend import on_cpu

    needed = model_bytes(config, compute_type=compute_dtype, scheme=scheme)
    if on_cpu() and needed > (free := available_memory()):
        raise UnsupportedError(
            f"{folder}: the weights of {config.num_parameters():,} parameters in {scheme or compute_dtype} "
            f"need {gigabytes(needed)} of memory, and {gigabytes(free)} are free here"
        )


def _describe(built: Assembled) -> Assembled:
    """With the numbers of parameters; of all processes, where there are several."""
    spread = built.spread
    sizes = [
        (p.size, not p.stop_gradient)
        for name, p in built.model.named_parameters()
        if spread is None or name not in spread.placements or spread.counts(name)
    ]
    if built.scheme is not None:
        from erniekit.quant.weight_only import quantised_matrices

        matrices = quantised_matrices(built.model).items()
        sizes += [(m.size, False) for name, m in matrices if spread is None or spread.counts(name)]
    found = [sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)]
    if spread is not None:
        from erniekit.parallel import comm

        found = [sum(parts) for parts in zip(*comm.gather_objects(found, spread.mesh.world), strict=True)]
    return replace(built, num_parameters=int(found[0]), num_trained=int(found[1]))
