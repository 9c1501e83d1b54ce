"""Weights of a model as codes of few bits, everything else as it was.

A layer's parameter `weight` gives place to a `QuantisedMatrix`, which the operators multiply with, so
the layers stay those of `nn`, and whoever replaces or wraps them (adapters, recomputation) finds what
it looks for. Weights are quantised one by one while they are read. They are frozen: a matrix is no
parameter, has no gradient, and is in no checkpoint.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from erniekit.checkpoint.files import Item
from erniekit.nn.linear import Linear
from erniekit.nn.moe import ExpertMatrices
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.quant.schemes import WeightFormat, formats_of


def chosen_weights(model: Any, roles: Mapping[str, str], scheme: str) -> dict[str, tuple[Any, WeightFormat]]:
    """The parameters that `scheme` quantises: layer and format of each.

    Args:
        roles: end of a module's name -> its role.
    """
    return layers_of(model, formats_of([name for name, _ in model.named_parameters()], roles, scheme))


def layers_of(model: Any, formats: Mapping[str, WeightFormat]) -> dict[str, tuple[Any, WeightFormat]]:
    """Parameter -> its layer, and its format."""
    return {
        name: (layer, formats[name])
        for module, layer in model.named_sublayers()
        if (name := f"{module}.weight") in formats and isinstance(layer, (Linear, ExpertMatrices))
    }


def apply(
    model: Any,
    roles: Mapping[str, str],
    scheme: str,
    items: Iterable[Item],
    *,
    dtype: str,
    placements: Mapping[str, Any] | None = None,
) -> Iterator[Item]:
    """Take the parameters that `scheme` quantises out of a model, and put matrices there as they pass by.

    Args:
        roles: end of a module's name -> its role.
        items: every parameter as (name, dtype word, raw bits).
        dtype: Paddle's name of the type that is computed in.
        placements: what this process holds of each parameter (`parallel/placement.py`), where several share
            them; each quantises the whole, so that all have the numbers of one.

    Returns:
        The items of the parameters that stay. It has to be read to its end.
    """
    waiting = take_out(model, formats_of([name for name, _ in model.named_parameters()], roles, scheme))
    assert waiting or placements is not None, f"{scheme} quantises nothing of this model"
    return _quantise(waiting, items, dtype, placements)


def take_out(model: Any, formats: Mapping[str, WeightFormat]) -> dict[str, tuple[Any, WeightFormat]]:
    """Take parameters out of a model; returns the layer that each was of, with its format."""
    taken = layers_of(model, formats)
    for layer, _ in taken.values():
        del layer.weight
    return taken


def _quantise(
    waiting: dict[str, tuple[Any, WeightFormat]],
    items: Iterable[Item],
    dtype: str,
    placements: Mapping[str, Any] | None,
) -> Iterator[Item]:
    for name, word, raw in items:
        if name not in waiting:
            yield name, word, raw
            continue
        layer, chosen = waiting.pop(name)
        matrix = QuantisedMatrix.of(
            *(raw, chosen.number, chosen.group, dtype), outputs=chosen.outputs, scale_type=chosen.scale_type
        )
        layer.weight = matrix if placements is None else matrix.part(placements[name])
    assert not waiting, f"matrices without a source: {sorted(waiting)}"


def quantised_matrices(model: Any) -> dict[str, QuantisedMatrix]:
    """The quantised weights of a model by the name that the parameter had."""
    layers = ((f"{name}.weight", getattr(layer, "weight", None)) for name, layer in model.named_sublayers())
    return {name: weight for name, weight in layers if isinstance(weight, QuantisedMatrix)}
