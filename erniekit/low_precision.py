"""A model in few bits: matrices of codes while it is built, rounded products while it is trained.

`assemble.py` and whoever trains say when; the models themselves know nothing of it.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from erniekit.checkpoint.files import open_tensors
from erniekit.checkpoint.fingerprint import Fingerprint
from erniekit.checkpoint.raw import load_weights
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.log import logger
from erniekit.models.registry import load_family
from erniekit.quant.folder import Quantisation
from erniekit.quant.schemes import FORMATS, SCHEMES, role_of

PADDLE_TYPES = {"fp32": "float32", "bf16": "bfloat16"}


def apply_fp8(built: Any, *, use_fp8: bool, **switches: Any) -> Any:
    """Have the model's MLPs and experts compute in FP8 where that is asked for.

    Args:
        switches: keyword arguments of `quant.fp8.train_in_fp8`.
    """
    if not use_fp8:
        return built
    from erniekit.quant.fp8 import train_in_fp8

    made = train_in_fp8(built.model, load_family(built.config).plan.ROLES, **switches)
    assert made.layers or built.spread is not None, "no matrix of this model computes in FP8"
    if built.spread is not None:
        made.gather = _values_of_all(built.spread.mesh.world)
    logger.info(f"fp8: {len(made.layers)} matrices of MLPs and experts compute block by block in FP8")
    return replace(built, fp8=made)


def apply_qat(
    built: Any, total_steps: int, resumed: Path | None = None, *, qat_scheme: str | None, **keys: Any
) -> Any:
    """Have the model train for a scheme where that is asked for.

    Args:
        resumed: the checkpoint that the run goes on from.
        keys: keyword arguments of `quant.qat.train_for`.

    Raises:
        CheckpointError: the checkpoint is of another scheme, or of none.
    """
    if qat_scheme is None:
        return built
    from erniekit.quant.qat import train_for
    from erniekit.quant.trained import TRAINED_FILE, read_trained

    made = train_for(
        built.model, load_family(built.config).plan.ROLES, total_steps, qat_scheme=qat_scheme, **keys
    )
    if built.spread is not None:
        made.largest_of_all = _largest_over(built.spread.mesh.world)
    if resumed is not None:
        trained = read_trained(resumed)
        if trained is None:
            raise CheckpointError(f"{resumed} has no {TRAINED_FILE}: it was not trained with qat_scheme")
        made.go_on_from(trained)
    logger.info(f"qat: {len(made.layers)} matrices train for {qat_scheme} ({SCHEMES[qat_scheme].words})")
    return replace(built, qat=made)


def check_qat(qat_scheme: str | None, layout: Any, sharding: str, *, learned: bool = False) -> None:
    """Refuse processes that share matrices, whose scales are of the whole; all where scales are learned.

    Raises:
        UnsupportedError: they do.
    """
    shared = max(layout.tensor, layout.pipeline, layout.expert) > 1 or sharding == "stage3"
    if qat_scheme is not None and shared:
        raise UnsupportedError(
            f"qat_scheme: {qat_scheme} is not built for processes that share matrices or layers "
            "(tensor_parallel_degree, pipeline_parallel_degree, expert_parallel_degree, sharding: stage3); "
            "write sharding: stage1, which shares the states of the optimizer"
        )
    if qat_scheme is not None and learned:
        raise UnsupportedError(
            "qat_learn_scales: true is not built for several processes; train with one, or leave it out"
        )


def _values_of_all(group: Any) -> Any:
    from erniekit.parallel import comm

    return lambda own: comm.gather_objects(own, group)


def _largest_over(group: Any) -> Any:
    import paddle

    from erniekit.parallel import comm

    return lambda found: comm.all_reduce(paddle.to_tensor(found), group, "max").numpy()


def scheme_of(kept: Quantisation, asked: str | None, folder: Path, *, adapted: bool) -> str:
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


def build_kept(folder: Path, config: Any, compute_dtype: str, kept: Quantisation) -> tuple[Any, str]:
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
    tell_quantised(model, kept.scheme)
    return model, taken.text()


def build_quantised(folder: Path, config: Any, compute_dtype: str, scheme: str) -> tuple[Any, str]:
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
    tell_quantised(model, scheme)
    return model, taken.text()


def tell_quantised(model: Any, scheme: str) -> None:
    from erniekit.quant.weight_only import quantised_matrices

    matrices = quantised_matrices(model)
    logger.info(
        f"quantised: {len(matrices)} weights in {scheme} ({SCHEMES[scheme].words}), "
        f"{sum(m.num_bytes for m in matrices.values()) / 2**20:,.0f} MiB, "
        f"{8 * sum(m.num_bytes for m in matrices.values()) / sum(m.size for m in matrices.values()):.2f} "
        f"bits a weight; {', '.join(dict.fromkeys(n.split('.')[-2] for n in matrices))}"
    )
