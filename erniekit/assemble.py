"""The one place where configuration meets a model.

Order, fixed: build -> load, quantising weights that stay frozen -> adapt -> distribute -> recompute ->
shard. Each stage logs what it touched. Distribution and sharding join in this order when their rooms
are built.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from erniekit.checkpoint.adapter_files import is_adapter, open_adapter
from erniekit.checkpoint.files import open_tensors
from erniekit.checkpoint.fingerprint import Fingerprint
from erniekit.checkpoint.sources import base_folder
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.log import logger
from erniekit.models.registry import load_family, read_model_config
from erniekit.parallel.recomputation import Recomputation
from erniekit.quant.folder import Quantisation, read_quantisation
from erniekit.quant.schemes import FORMATS, SCHEMES, WHILE_READ, role_of

if TYPE_CHECKING:
    import paddle

PADDLE_TYPES = {"fp32": "float32", "bf16": "bfloat16"}
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
    """

    model: Any
    config: Any
    compute_dtype: str
    num_parameters: int
    num_trained: int
    adapter: Any = None
    fingerprint: str | None = None
    scheme: str | None = None

    def numbers_in_words(self) -> str:
        """Number types of weights and arithmetic."""
        return _in_words(self.compute_dtype, self.scheme)


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
    *,
    continue_training: bool,
    compute_type: str,
    fine_tuning: str,
    hidden_dropout_prob: float,
    attention_probs_dropout_prob: float,
    freeze: Sequence[str],
    num_nextn_predict_layers: int | None = None,
) -> Assembled:
    """Build the model of `folder` for training.

    Args:
        folder: a model folder; with `continue_training=False` only its `config.json` is read and
            the weights are initialised at random.
        adaptation: the adapter, when `fine_tuning` asks for one.
        num_nextn_predict_layers: blocks of multi-token prediction; None keeps those of the folder.

    Raises:
        CheckpointError: the folder or its tensors do not fit.
        ConfigError: a `freeze` pattern matches no parameter.
        UnsupportedError: `fine_tuning` or the model family is not built yet, or the memory does not do.
    """
    if fine_tuning.lower() not in ADAPTERS:
        raise UnsupportedError(f"fine_tuning: {fine_tuning} is not built yet; write fine_tuning: Full")
    layer = ADAPTERS[fine_tuning.lower()]
    built = _build(folder, compute_type=compute_type, load=continue_training, adapted=layer is not None)
    if built.scheme is not None and fine_tuning.lower() in ("full", "pissa"):
        raise ConfigError(
            f"fine_tuning: {fine_tuning}: the weights of {folder} are in {built.scheme}, and few bits "
            "cannot be trained or taken apart; write fine_tuning: LoRA or DoRA, or name the model in full"
        )
    if num_nextn_predict_layers is not None:
        built = _with_ahead(built, num_nextn_predict_layers, adapted=layer is not None)
    if layer is not None:
        assert adaptation is not None, f"fine_tuning: {fine_tuning} without an adapter"
        built = _adapt(built, layer, adaptation)
    built.model.set_dropout(hidden_dropout_prob, attention_probs_dropout_prob)
    apply_freeze(built.model, freeze)
    built.model.train()
    return _describe(built)


def load_for_inference(
    folder: Path, adapters: Sequence[Path] = (), *, compute_type: str = "auto", scheme: str | None = None
) -> Assembled:
    """Build the model of `folder` with its weights, in evaluation mode, nothing trained.

    Args:
        folder: a model folder, or an adapter, which goes on the model that it was trained on.
        adapters: folders of adapters for the model; the first one is put on it, unmerged.
        scheme: what weights are quantised by, where `compute_type` only says what is computed in.

    Raises:
        CheckpointError: an adapter was trained on other weights.
    """
    if is_adapter(folder):
        adapters, folder = (folder, *adapters), base_folder(folder)
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
    has = built.config.num_nextn_predict_layers
    config = built.config.with_ahead(number)
    if number == has:
        return built
    if number > has and adapted:
        raise ConfigError(
            f"num_nextn_predict_layers: {number}: the model has {has}, and under an adapter new blocks would "
            f"stay as they are drawn; write {has} or fewer, or fine_tuning: Full"
        )
    added = built.model.set_num_ahead(number)
    if added:
        logger.info(
            f"multi-token prediction: {number - has} new blocks ({len(added)} tensors) of fresh weights"
        )
    else:
        logger.info(f"multi-token prediction: {has - number} of {has} blocks are left out, and not saved")
    return replace(built, config=config)


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
    return apply_recompute(built.model, plan, chosen, offload_recompute_inputs=offload_recompute_inputs)


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


def _adapt(built: Assembled, layer: str, adaptation: Adaptation) -> Assembled:
    """Apply a new adapter, or one to go on from."""
    from erniekit.adapters import lora, state

    module, _, name = layer.partition(":")
    linear = getattr(import_module(module), name)
    applied = lora.apply(built.model, _layout(built.config), linear, **adaptation.keys)
    if adaptation.start is None:
        applied.initialise()
    else:
        check_base(built, adaptation.start)
        state.load(applied, open_adapter(adaptation.start))
    return replace(built, adapter=applied)


def _layout(config: Any) -> Any:
    """What a parameter's matrices are called in files, for adapters."""
    family = load_family(config)
    return lambda parameter, shape: family.names_in_files(parameter, shape, config)


def apply_freeze(model: Any, freeze: Sequence[str]) -> list[str]:
    """Stop the gradients of every parameter whose name one of the regular expressions finds.

    Returns:
        The names of the frozen parameters.
    """
    names = [name for name, _ in model.named_parameters()]
    frozen: set[str] = set()
    for pattern in freeze:
        try:
            found = [name for name in names if re.search(pattern, name)]
        except re.error as error:
            raise ConfigError(f"freeze: {pattern!r} is not a regular expression ({error})") from error
        if not found:
            examples = ", ".join(names[:3])
            raise ConfigError(
                f"freeze: {pattern!r} matches no parameter; names look like {examples}, {names[-1]}"
            )
        frozen.update(found)
    trained = {name for name, parameter in model.named_parameters() if not parameter.stop_gradient}
    if trained <= frozen:
        raise ConfigError(f"freeze: {list(freeze)} freezes every parameter; nothing would be trained")
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.stop_gradient = True
    if frozen:
        logger.info(f"frozen: {len(frozen)} of {len(names)} tensors ({', '.join(sorted(frozen)[:3])}, ...)")
    return sorted(frozen)


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
        scheme = _scheme_of(kept, scheme, folder, adapted=adapted)
    _require_memory(config, compute_dtype, scheme, folder)
    family = load_family(config)
    fingerprint = None
    if kept is not None:
        model, fingerprint = _build_kept(folder, config, compute_dtype, kept)
    elif scheme is not None:
        assert load, f"compute_type: {scheme} without weights"
        model, fingerprint = _build_quantised(folder, config, compute_dtype, scheme)
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


def _scheme_of(kept: Quantisation, asked: str | None, folder: Path, *, adapted: bool) -> str:
    """The scheme of a quantised folder, if that is what may be done with it."""
    if asked not in (None, kept.scheme):
        raise ConfigError(
            f"compute_type: {asked}: {folder} is quantised already, as {kept.scheme}; write compute_type: "
            "auto"
        )
    rounds = [name for name, format in kept.formats.items() if FORMATS[format].activations is not None]
    if adapted and rounds:
        raise UnsupportedError(
            f"{folder}: an adapter over {kept.scheme}, which rounds the inputs of {rounds[0]}, is not "
            "built yet; use one that was quantised with a scheme of weights alone, such as wint4"
        )
    return kept.scheme


def _build_kept(folder: Path, config: Any, compute_dtype: str, kept: Quantisation) -> tuple[Any, str]:
    """The model of a quantised folder, and the fingerprint of its weights."""
    import paddle

    from erniekit.quant import load

    family = load_family(config)
    with paddle.LazyGuard():
        model = family.build(config, dtype=compute_dtype)
    shapes = family.weights.memory_shapes(config)
    names = {
        name: family.weights.matrix_names(name, shape, config)
        for name, shape in shapes.items()
        if role_of(name, family.plan.ROLES) is not None
    }
    taken = Fingerprint()
    matrices = load.apply(
        *(model, kept, open_tensors(folder), names),
        attention=family.plan.WHOLE_ATTENTION,
        dtype=PADDLE_TYPES[compute_dtype],
    )
    for _ in taken.watch(matrices):
        pass
    load_weights(model, taken.watch(family.weights.load_weights(folder, config, set(kept.formats))))
    _tell_quantised(model, kept.scheme)
    return model, taken.text()


def _build_quantised(folder: Path, config: Any, compute_dtype: str, scheme: str) -> tuple[Any, str]:
    """The model with its weights quantised while they are read, and their fingerprint."""
    import paddle

    from erniekit.quant import weight_only

    family = load_family(config)
    with paddle.LazyGuard():  # no memory for parameters before they have a value
        model = family.build(config, dtype=compute_dtype)
    taken = Fingerprint()
    items = taken.watch(family.weights.load_weights(folder, config))
    dtype = PADDLE_TYPES[compute_dtype]
    load_weights(model, weight_only.apply(model, family.plan.ROLES, scheme, items, dtype=dtype))
    _tell_quantised(model, scheme)
    return model, taken.text()


def _tell_quantised(model: Any, scheme: str) -> None:
    from erniekit.quant.weight_only import quantised_matrices

    matrices = quantised_matrices(model)
    logger.info(
        f"quantised: {len(matrices)} weights in {scheme} ({SCHEMES[scheme].words}), "
        f"{sum(m.num_bytes for m in matrices.values()) / 2**20:,.0f} MiB, "
        f"{8 * sum(m.num_bytes for m in matrices.values()) / sum(m.size for m in matrices.values()):.2f} "
        f"bits a weight; {', '.join(dict.fromkeys(n.split('.')[-2] for n in matrices))}"
    )


def _require_memory(config: Any, compute_dtype: str, scheme: str | None, folder: Path) -> None:
    """Refuse weights that cannot lie in this machine's memory, before any of it is taken."""
    import paddle

    from erniekit.estimate.hardware import available_memory
    from erniekit.estimate.state import gigabytes, model_bytes

    needed = model_bytes(config, compute_type=compute_dtype, scheme=scheme)
    if paddle.device.get_device() == "cpu" and needed > (free := available_memory()):
        raise UnsupportedError(
            f"{folder}: the weights of {config.num_parameters():,} parameters in {scheme or compute_dtype} "
            f"need {gigabytes(needed)} of memory, and {gigabytes(free)} are free here; spreading a model "
            "over several devices is not built yet"
        )


def load_weights(model: Any, items: Any) -> None:
    """Copy raw tensors (name, safetensors dtype, array) in memory layout into the model, casting each once.

    The source has already checked names and shapes; a name the model does not have is our own fault.
    """
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for name, dtype, array in items:
        parameters[name].set_value(to_tensor(array, dtype).astype(parameters[name].dtype))
        missing.discard(name)
    assert not missing, f"tensors without a source: {sorted(missing)}"


def to_tensor(array: Any, dtype: str) -> "paddle.Tensor":
    """A Paddle tensor from raw bits; `dtype` is a safetensors word, bf16 comes as uint16."""
    import paddle

    tensor = paddle.to_tensor(array)
    if dtype == "BF16":
        return tensor.view("bfloat16")
    return tensor


def to_raw(tensor: "paddle.Tensor") -> tuple[str, Any]:
    """Safetensors word and raw bits of a tensor (bf16 as uint16)."""
    words = {"paddle.float32": "F32", "paddle.bfloat16": "BF16", "paddle.float16": "F16"}
    return words[str(tensor.dtype)], tensor.numpy()


def _describe(built: Assembled) -> Assembled:
    sizes = [(p.size, not p.stop_gradient) for p in built.model.parameters()]
    if built.scheme is not None:
        from erniekit.quant.weight_only import quantised_matrices

        sizes += [(matrix.size, False) for matrix in quantised_matrices(built.model).values()]
    return replace(
        built,
        num_parameters=int(sum(size for size, _ in sizes)),
        num_trained=int(sum(size for size, trained in sizes if trained)),
    )
