"""LoRA (Hu et al. 2021): small trained factors beside frozen matrices, y = x W + scale (x A) B.

Applied from outside: layers are replaced by ones of `layers.py` that share their weights, everything
else is frozen, and whatever trains or generates goes on as before. Rank-stabilised LoRA (Kalajdzievski
2023) divides alpha by the root of the rank; LoRA+ (Hayou et al. 2024) lets B learn faster than A.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import paddle

from erniekit.adapters.layers import Adapted, LoraExperts, LoraGate, LoraLinear, Piece
from erniekit.adapters.targets import EXPERTS, ROUTER, Layout, Target, find_targets
from erniekit.checkpoint.adapter_files import AdapterSettings
from erniekit.errors import ConfigError, UnsupportedError
from erniekit.log import logger
from erniekit.ops.quantised import QuantisedMatrix

# What lora_alpha and lora_plus_scale are with rslora_plus.
PLUS_SCALE = PLUS_ALPHA = 4.0
_STABLE_ALPHA = 4.0


@dataclass
class Applied:
    """An adapter on a model.

    Args:
        method: LoRA, DoRA or PiSSA.
        layers: module name -> layer that has an adapter now; replaced: the layer that was there.
        shapes: of all parameters of the model, and pieces: of all layers with an adapter; where processes
            share a model, of the whole one.
        placements: of what this process holds a part of.
        saved: names of whole parameters that are trained and saved with the adapter.
        plus_scale: how much faster B learns than A.
        layout: what parameters are called in files.
        originals: values of whole parameters that an adapter from a file has replaced.
    """

    method: str
    model: Any
    layout: Layout
    settings: AdapterSettings
    layers: dict[str, Adapted]
    replaced: dict[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    pieces: Mapping[str, tuple[Piece, ...]]
    placements: Mapping[str, Any] = field(default_factory=dict)
    saved: tuple[str, ...] = ()
    plus_scale: float = 1.0
    originals: dict[str, paddle.Tensor] = field(default_factory=dict)

    def learning_rate_ratios(self) -> dict[str, float]:
        """Parameter -> share of the learning rate, where it is not 1."""
        if self.plus_scale == 1.0:
            return {}
        return {f"{module}.lora_B": self.plus_scale for module in self.layers}

    def names(self) -> list[str]:
        """Names of the trained parameters."""
        return [name for name, parameter in self.model.named_parameters() if not parameter.stop_gradient]

    def num_parameters(self) -> int:
        """Numbers in the adapter, whole saved parameters included."""
        parameters = dict(self.model.named_parameters())
        own = sum(p.size for name, p in parameters.items() if ".lora_" in name)
        return int(own + sum(parameters[name].size for name in self.saved))

    def words(self) -> str:
        """Size, scale and place, for people."""
        settings = self.settings
        kind = ", rank-stabilised" if settings.rank_stabilised else ""
        plus = f", B learns {self.plus_scale:g} times as fast" if self.plus_scale != 1.0 else ""
        whole = f", {', '.join(self.saved)} whole" if self.saved else ""
        ends = dict.fromkeys(
            piece.name.rpartition(".")[2] for pieces in self.pieces.values() for piece in pieces
        )
        scale = settings.scale("", settings.rank)
        return (
            f"{self.method} of rank {settings.rank}, scale {scale:g}{kind}{plus}, on "
            f"{', '.join(ends)} ({len(self.pieces)} matrices){whole}; the rest is frozen"
        )

    def spread(self, placements: Mapping[str, Any]) -> None:
        """The model lies over several processes from now on; this one holds `placements` of it."""
        self.placements = placements
        here = dict(self.model.named_parameters())
        self.layers = {name: layer for name, layer in self.layers.items() if f"{name}.lora_A" in here}

    def initialise(self) -> None:
        """What is to be done once for an adapter that begins anew; the factors are drawn already."""
        for layer in self.layers.values():
            layer.begin()


def resolve_scaling(
    *, lora_rank: int, lora_alpha: float, rslora: bool, rslora_plus: bool, lora_plus_scale: float
) -> tuple[float, bool, float]:
    """Alpha, whether it is divided by the root of the rank, and the factor of LoRA+.

    `lora_alpha: -1` is twice the rank, and 4 with rslora; `rslora_plus` is rslora with alpha 4 and a
    factor of 4.
    """
    if rslora_plus:
        return PLUS_ALPHA, True, PLUS_SCALE
    if lora_alpha == -1:
        lora_alpha = _STABLE_ALPHA if rslora else 2.0 * lora_rank
    return float(lora_alpha), rslora, lora_plus_scale


def apply(
    model: Any,
    layout: Layout,
    linear: type[LoraLinear] = LoraLinear,
    *,
    lora_rank: int,
    lora_alpha: float,
    lora_dropout: float,
    rslora: bool,
    rslora_plus: bool,
    lora_plus_scale: float,
    lora_target: Sequence[str],
    lora_modules_to_save: Sequence[str],
) -> Applied:
    """Give the chosen matrices of a model an adapter, and freeze the rest.

    Args:
        layout: what a parameter's matrices are called in files, whole and in pieces.
        linear: the layer that takes the place of a linear one; it is what LoRA, DoRA and PiSSA differ in.

    Raises:
        ConfigError: a word of `lora_target` or `lora_modules_to_save` chooses nothing.
    """
    alpha, stabilised, plus_scale = resolve_scaling(
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        rslora=rslora,
        rslora_plus=rslora_plus,
        lora_plus_scale=lora_plus_scale,
    )
    settings = AdapterSettings(lora_rank, alpha, lora_dropout, stabilised, linear.method == "DoRA")
    saved = tuple(_whole_parameters(model, lora_modules_to_save))
    # Factors beside a matrix that is trained whole would only learn the same again.
    targets = [t for t in find_targets(model, layout, lora_target) if f"{t.module}.weight" not in saved]
    if not targets:
        raise ConfigError("lora_modules_to_save names all that lora_target chooses: nothing is left to adapt")
    applied = attach(model, layout, targets, settings, linear)
    applied.plus_scale = plus_scale
    applied.saved = saved
    freeze_base(applied)
    return applied


def attach(
    model: Any,
    layout: Layout,
    targets: Sequence[Target],
    settings: AdapterSettings,
    linear: type[LoraLinear],
) -> Applied:
    """Replace the targets' layers; nothing is frozen yet.

    Raises:
        UnsupportedError: the method is not for a layer of this kind.
    """
    kinds: dict[str, Callable[..., Adapted]] = {EXPERTS: LoraExperts, ROUTER: LoraGate}
    layers: dict[str, Adapted] = {}
    replaced: dict[str, Any] = {}
    for target in targets:
        make = kinds.get(target.kind, linear)
        if linear is not LoraLinear and target.kind != "linear":
            raise UnsupportedError(
                f"lora_target: {target.module} with fine_tuning: {linear.method} is not built; "
                "write fine_tuning: LoRA"
            )
        layers[target.module] = make(
            target.layer,
            target.pieces,
            rank=settings.rank,
            scale=settings.scale("", settings.rank),
            probability=settings.dropout,
        )
        layers[target.module].training = target.layer.training
        replaced[target.module] = target.layer
    pieces = {module: layer.pieces for module, layer in layers.items()}
    applied = Applied(linear.method, model, layout, settings, layers, replaced, weight_shapes(model), pieces)
    _swap(model, layers)
    return applied


def weight_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Of all parameters, and of quantised matrices in their place."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    for name, layer in model.named_sublayers():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, QuantisedMatrix):
            shapes[f"{name}.weight"] = tuple(weight.shape)
    return shapes


def freeze_base(applied: Applied) -> None:
    """Stop the gradients of everything but the adapter."""
    for name, parameter in applied.model.named_parameters():
        parameter.stop_gradient = ".lora_" not in name and name not in applied.saved
    modules = list(applied.layers)
    logger.info(
        f"{applied.method}: rank {applied.settings.rank} on {len(modules)} matrices "
        f"({', '.join(modules[:2])}, ...), {applied.num_parameters():,} trained parameters"
        + (f", {', '.join(applied.saved)} whole" if applied.saved else "")
    )


def merge(applied: Applied) -> list[str]:
    """Fold the adapter into the weights and put the plain layers back; returns the names of the weights.

    Raises:
        UnsupportedError: the weights are quantised, and a sum of theirs would have to be quantised anew.
    """
    for module, layer in applied.layers.items():
        if isinstance(layer.weight, QuantisedMatrix):
            raise UnsupportedError(
                f"{module} is quantised, and an adapter is merged into weights in full: "
                "erniekit export merges it into the model as it is on the disk"
            )
    for layer in applied.layers.values():
        layer.fold()
    applied.originals.clear()
    names = [f"{module}.weight" for module in applied.layers]
    _swap(applied.model, applied.replaced)
    applied.layers = {}
    return names


def detach(applied: Applied) -> None:
    """Take the adapter off; the model is what it was before."""
    for layer in applied.layers.values():
        layer.leave()
    parameters = dict(applied.model.named_parameters())
    for name, original in applied.originals.items():
        parameters[name].set_value(original)
    _swap(applied.model, applied.replaced)
    applied.layers = {}


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The model as it was without its adapters, for a while; whole saved parameters stay as trained."""
    layers = [layer for layer in model.sublayers() if isinstance(layer, Adapted)]
    before = [layer.active for layer in layers]
    try:
        for layer in layers:
            layer.active = False
        yield
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.active = active


def _swap(model: Any, layers: dict[str, Any]) -> None:
    """Put layers in the places of their names."""
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        holder = model
        for part in parent.split(".") if parent else ():
            holder = holder._sub_layers[part]
        holder._sub_layers[leaf] = layer


def _whole_parameters(model: Any, entries: Sequence[str]) -> list[str]:
    """Parameters of the modules that `lora_modules_to_save` names, by an end of the name or a regex."""
    names = [name for name, _ in model.named_parameters()]
    weights = ((f"{name}.weight", getattr(layer, "weight", None)) for name, layer in model.named_sublayers())
    quantised = [name for name, weight in weights if isinstance(weight, QuantisedMatrix)]
    chosen: dict[str, None] = {}
    for entry in entries:
        try:
            found = [name for name in names if _is_of_module(name, entry)]
            refused = [name for name in quantised if _is_of_module(name, entry)]
        except re.error as error:
            raise ConfigError(
                f"lora_modules_to_save: {entry!r} is not a regular expression ({error})"
            ) from error
        if refused:
            raise ConfigError(
                f"lora_modules_to_save: {entry!r} would train {refused[0]}, which compute_type keeps in few "
                "bits; write compute_type: auto, or name what stays in full, such as embed_tokens"
            )
        if not found:
            ends = dict.fromkeys(name.split(".")[-2] for name in names)
            raise ConfigError(
                f"lora_modules_to_save: {entry!r} matches no module; names end in {', '.join(ends)}"
            )
        chosen |= dict.fromkeys(found)
    return list(chosen)


def _is_of_module(parameter: str, entry: str) -> bool:
    module = parameter.rpartition(".")[0]
    if re.fullmatch(r"[\w.]+", entry):
        return module == entry or module.endswith(f".{entry}")
    return re.search(entry, module) is not None
