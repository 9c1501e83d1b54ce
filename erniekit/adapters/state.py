"""An adapter between the model in memory and its files.

In memory the factors of a fused weight lie beside each other; files of peft hold a pair for every
piece, under the names of Hugging Face's files; files of PaddleFormers hold one pair for the fused
weight. A fused pair becomes a pair for every piece by sharing its A, and pieces become a fused pair of
the sum of their ranks, [A_1 | A_2] and B with the pieces' blocks on its diagonal: both are exact.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from erniekit.adapters.dora import DoraLinear
from erniekit.adapters.layers import Adapted, LoraLinear, Piece
from erniekit.adapters.lora import Applied, attach, weight_shapes
from erniekit.adapters.targets import Layout, Target, find_targets
from erniekit.checkpoint.adapter_files import (
    OWN_FILE,
    PADDLE_CONFIG,
    PEFT_CONFIG,
    PREFIX,
    Adapter,
    AdapterSettings,
    Pair,
    paddle_config,
    peft_config,
)
from erniekit.checkpoint.files import Item
from erniekit.errors import CheckpointError, ConfigError

TYPES = {paddle.float32: "F32", paddle.bfloat16: "BF16", paddle.float16: "F16"}
# The embedding, and what files call the output layer.
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ALL = ("all-linear", "experts", "router", "head")


def state_items(applied: Applied) -> Iterator[Item]:
    """The adapter as peft's file holds it: (name, dtype word, raw bits)."""
    for layer in applied.layers.values():
        dtype = TYPES[layer.lora_A.dtype]
        lengths = layer.stored_magnitudes()
        for piece, a, b in layer.stored_factors():
            yield f"{PREFIX}{piece.name}.lora_A.weight", dtype, np.ascontiguousarray(a.T)
            yield f"{PREFIX}{piece.name}.lora_B.weight", dtype, np.ascontiguousarray(b.T)
            if piece in lengths:
                yield f"{PREFIX}{piece.name}.lora_magnitude_vector", "F32", lengths[piece]
    parameters = dict(applied.model.named_parameters())
    for name in applied.saved:
        parameter = parameters[name]
        array = parameter.numpy()
        for stored in stored_matrices(applied.layout, name, array.shape):
            part = array if stored.expert is None else array[stored.expert]
            part = part[..., stored.start : stored.stop]
            part = part.T if stored.turned else part
            yield f"{PREFIX}{stored.name}", TYPES[parameter.dtype], np.ascontiguousarray(part)
        if name == EMBEDDING and is_tied(applied.model):
            # peft keeps the output layer apart from the embedding that it shares, and asks for it.
            yield f"{PREFIX}{HEAD}", TYPES[parameter.dtype], array


def paddle_items(applied: Applied) -> Iterator[Item]:
    """The adapter as PaddleFormers' file holds it, of the rank of `paddle_rank`, fused weights whole."""
    rank = paddle_rank(applied)
    for module, layer in applied.layers.items():
        dtype = TYPES[layer.lora_A.dtype]
        whole, _ = applied.layout(f"{module}.weight", applied.shapes[f"{module}.weight"])
        if layer.stored_magnitudes():
            raise ConfigError("PaddleFormers' format has no trained lengths: a DoRA adapter stays in peft's")
        for stored in whole:
            factors = [f for f in layer.stored_factors() if f[0].expert == stored.expert]
            some = factors[0][1]
            a = np.zeros((some.shape[0], rank), some.dtype)
            b = np.zeros((rank, stored.stop - stored.start), some.dtype)
            first = 0
            for piece, of_piece, to_piece in factors:
                last = first + of_piece.shape[1]
                a[:, first:last], b[first:last, piece.start : piece.stop] = of_piece, to_piece
                first = last
            name = _paddle_name(stored.name.removesuffix(".weight"))
            yield f"{name}.lora_A", dtype, a
            yield f"{name}.lora_B", dtype, b
    parameters = dict(applied.model.named_parameters())
    for name in applied.saved:
        array = parameters[name].numpy()
        for stored in applied.layout(name, array.shape)[0]:
            part = array if stored.expert is None else array[stored.expert]
            yield _paddle_name(stored.name), TYPES[parameters[name].dtype], part


def paddle_rank(applied: Applied) -> int:
    """The one rank of PaddleFormers' file: that of the weight with the most pieces; the others are padded."""
    most = max(len(layer.columns) for layer in applied.layers.values())
    return most * applied.settings.rank * stored_ranks(applied)


def stored_ranks(applied: Applied) -> int:
    """Ranks in files for one in memory."""
    return max(getattr(layer, "stored_ranks", 1) for layer in applied.layers.values())


def write_settings(
    applied: Applied, folder: Path, facts: Mapping[str, Any], *, base: str | None = None
) -> None:
    """Write `adapter_config.json` and `erniekit_adapter.json` beside the tensors.

    Args:
        facts: what only ErnieKit knows, such as the fingerprint of the base.
        base: where the model is that the adapter is for.
    """
    settings = _with_rank(applied.settings, applied.settings.rank * stored_ranks(applied))
    settings = replace(settings, base=base)
    content = peft_config(replace(settings, modules_to_save=_whole_modules(applied)), target_names(applied))
    if EMBEDDING in applied.saved and is_tied(applied.model):
        content["ensure_weight_tying"] = True
    _write(folder / PEFT_CONFIG, content)
    _write_own(applied, folder, facts, applied.settings.rank)


def write_paddle_settings(
    applied: Applied, folder: Path, facts: Mapping[str, Any], *, base: str | None, dtype: str
) -> None:
    """Write `lora_config.json` and `erniekit_adapter.json` beside the tensors.

    Args:
        facts, base: as for `write_settings`.
        dtype: of the tensors, as in config.json.
    """
    settings = replace(_with_rank(applied.settings, paddle_rank(applied)), base=base)
    names = [f".*{module.rpartition('.')[2]}" for module in applied.layers]
    content = paddle_config(settings, list(dict.fromkeys(names)), dtype=dtype)
    whole = [f".*{name.split('.')[-2]}.*" for name in applied.saved]
    _write(folder / PADDLE_CONFIG, content | {"trainable_modules": whole or None})
    _write_own(applied, folder, facts, settings.rank // stored_ranks(applied))


def target_names(applied: Applied) -> list[str]:
    """`target_modules` for peft: last parts of names where all such modules are adapted, else whole names."""
    adapted = [piece.name for pieces in applied.pieces.values() for piece in pieces]
    every = _all_names(applied)
    ends: dict[str, list[str]] = {}
    for name in adapted:
        ends.setdefault(name.rpartition(".")[2], []).append(name)
    found: list[str] = []
    for end, names in ends.items():
        complete = len(names) == sum(name.rpartition(".")[2] == end for name in every)
        found += [end] if complete else names
    return found


def load(applied: Applied, adapter: Adapter) -> None:
    """Take over the factors of a file into an adapter of the same shape, to go on training it.

    Raises:
        ConfigError: the file's adapter is of another rank, scale, kind, or on other matrices.
    """
    settings, given = applied.settings, adapter.settings
    ranks = stored_ranks(applied)
    if adapter.facts.get("method", applied.method) != applied.method:
        raise ConfigError(
            f"{adapter.folder}: the adapter is made by {adapter.facts['method']}, and fine_tuning is "
            f"{applied.method}; write fine_tuning: {adapter.facts['method']}"
        )
    if given.rank != settings.rank * ranks:
        raise ConfigError(
            f"{adapter.folder}: the adapter is of rank {given.rank // ranks}, and lora_rank is "
            f"{settings.rank}; write lora_rank: {given.rank // ranks}"
        )
    pairs = {pair.name: pair for pair in adapter.pairs()}
    for module, layer in applied.layers.items():
        found = _pairs_of(layer.pieces, module, applied.shapes, applied.layout, pairs)
        missing = [piece.name for piece in layer.pieces if piece not in found]
        if missing:
            raise ConfigError(
                f"{adapter.folder}: the adapter has nothing for {missing[0]}, which lora_target chooses"
            )
        for pair, _ in found.values():
            if not math.isclose(pair.scale, layer.scale, rel_tol=1e-6):
                raise ConfigError(
                    f"{adapter.folder}: the adapter's scale is {pair.scale:g}, and lora_rank, lora_alpha and "
                    f"rslora give {layer.scale:g}; write lora_alpha: {given.alpha / ranks:g} and rslora: "
                    f"{str(given.rank_stabilised).lower()}"
                )
        _fill(layer, found)
    _refuse_rest(pairs, applied, adapter)
    _take_whole_tensors(applied, adapter, expected=applied.saved)


def attach_file(model: Any, layout: Layout, adapter: Adapter) -> Applied:
    """Put an adapter from a file on a model, to be used unmerged; nothing is trained.

    Raises:
        CheckpointError: the adapter is of another model.
    """
    pairs = {pair.name: pair for pair in adapter.pairs()}
    targets: list[Target] = []
    shapes = weight_shapes(model)
    for target in find_targets(model, layout, _present(model, layout)):
        found = _pairs_of(target.pieces, target.module, shapes, layout, pairs)
        if found:
            targets.append(replace(target, pieces=tuple(found)))
    if not targets and not adapter.whole_tensors():
        raise CheckpointError(f"{adapter.folder}: the adapter has no matrix of this model")
    settings = adapter.settings
    largest = max((pair.a.shape[1] for pair in pairs.values()), default=settings.rank)
    linear: type[LoraLinear] = DoraLinear if settings.magnitudes else LoraLinear
    applied = attach(model, layout, targets, replace(_with_rank(settings, largest), dropout=0.0), linear)
    for module, layer in applied.layers.items():
        _fill(layer, _pairs_of(layer.pieces, module, shapes, layout, pairs))
        for name, parameter in layer.named_parameters(include_sublayers=False):
            if name.startswith("lora_"):
                parameter.stop_gradient = True
    _refuse_rest(pairs, applied, adapter)
    _take_whole_tensors(applied, adapter, expected=None)
    return applied


def _present(model: Any, layout: Layout) -> Sequence[str]:
    """The words of lora_target that choose every matrix that can have an adapter."""
    words = []
    for word in _ALL:
        try:
            find_targets(model, layout, [word])
        except ConfigError:
            continue
        words.append(word)
    return words


def _all_names(applied: Applied) -> list[str]:
    """Names in files of every module with a weight, adapted or not."""
    return [
        stored.name.removesuffix(".weight")
        for name, shape in applied.shapes.items()
        if name.endswith(".weight")
        for stored in stored_matrices(applied.layout, name, shape)
    ]


def stored_matrices(layout: Layout, name: str, shape: tuple[int, ...]) -> Sequence[Any]:
    """The tensors of Hugging Face's files that a parameter becomes."""
    whole, pieces = layout(name, tuple(shape))
    return pieces or whole


def _pairs_of(
    pieces: Sequence[Piece],
    module: str,
    shapes: Mapping[str, tuple[int, ...]],
    layout: Layout,
    pairs: Mapping[str, Pair],
) -> dict[Piece, tuple[Pair, slice]]:
    """For every piece its pair in a file, and the columns of the pair's B; from fused pairs too."""
    shape = shapes[f"{module}.weight"]
    whole, _ = layout(f"{module}.weight", shape)
    fused = {stored.expert: stored.name.removesuffix(".weight") for stored in whole}
    found = {}
    for piece in pieces:
        width = piece.stop - piece.start
        for name, columns in (
            (piece.name, slice(0, width)),
            (fused[piece.expert], slice(piece.start, piece.stop)),
        ):
            pair = pairs.get(name)
            if pair is None:
                continue
            if pair.a.shape[0] != shape[-2] or pair.b.shape[1] < columns.stop:
                raise CheckpointError(
                    f"the adapter's {name} is for a matrix [{pair.a.shape[0]}, {pair.b.shape[1]}], which "
                    "this model does not have: it is of another model"
                )
            found[piece] = (pair, columns)
            break
    return found


def _fill(layer: Adapted, found: Mapping[Piece, tuple[Pair, slice]]) -> None:
    """Set the factors; where a pair's scale is another than the layer's, B carries the difference."""
    layer.take_factors(
        {
            piece: (pair.a, pair.b[:, columns] * np.float32(pair.scale / layer.scale))
            for piece, (pair, columns) in found.items()
        }
    )
    lengths = {
        piece: pair.magnitude[columns]
        for piece, (pair, columns) in found.items()
        if pair.magnitude is not None
    }
    if lengths or isinstance(layer, DoraLinear):
        layer.take_magnitudes(lengths)


def _refuse_rest(pairs: Mapping[str, Pair], applied: Applied, adapter: Adapter) -> None:
    used = {piece.name for pieces in applied.pieces.values() for piece in pieces}
    for module in applied.pieces:
        whole, _ = applied.layout(f"{module}.weight", applied.shapes[f"{module}.weight"])
        used |= {stored.name.removesuffix(".weight") for stored in whole}
    rest = sorted(set(pairs) - used)
    if rest:
        raise CheckpointError(
            f"{adapter.folder}: the adapter has factors for {rest[0]} ({len(rest)} such matrices), which "
            "this model does not have or lora_target does not choose"
        )


def _take_whole_tensors(applied: Applied, adapter: Adapter, *, expected: Sequence[str] | None) -> None:
    """Replace whole parameters by those of the adapter (embedding and head, where tokens were added)."""
    tensors = adapter.whole_tensors()
    parameters = dict(applied.model.named_parameters())
    places = {
        stored.name: (name, stored)
        for name, shape in applied.shapes.items()
        for stored in stored_matrices(applied.layout, name, shape)
    }
    if HEAD in tensors and EMBEDDING in tensors and is_tied(applied.model):
        if not np.array_equal(adapter.read(tensors[HEAD]), adapter.read(tensors[EMBEDDING])):
            raise CheckpointError(
                f"{adapter.folder}: the adapter has an embedding and another output layer, and the model has "
                "one for both"
            )
        del tensors[HEAD]
    foreign = sorted(set(tensors) - set(places))
    if foreign:
        raise CheckpointError(f"{adapter.folder}: {foreign[0]} is no parameter of this model")
    names = {places[name][0] for name in tensors}
    if expected is not None and names != set(expected):
        raise ConfigError(
            f"{adapter.folder}: the adapter saves {', '.join(sorted(names)) or 'no module'} whole, and "
            f"lora_modules_to_save {', '.join(sorted(expected)) or 'none'}"
        )
    for name in sorted(names & parameters.keys()):
        parameter, placement = parameters[name], applied.placements.get(name)
        applied.originals[name] = parameter.clone()
        array = parameter.astype("float32").numpy()
        if placement is not None:  # of which the adapter has all
            array = np.zeros(placement.shape, np.float32)
        for key_name, key in tensors.items():
            owner, stored = places[key_name]
            if owner != name:
                continue
            given = adapter.read(key)
            given = given.T if stored.turned and adapter.turned else given
            whole = array if stored.expert is None else array[stored.expert]
            part = whole[..., stored.start : stored.stop]
            if given.shape != part.shape:
                raise CheckpointError(
                    f"{adapter.folder}: {key} is {list(given.shape)}, and the model's is {list(part.shape)}: "
                    "a vocabulary that has grown needs a base model of the same size"
                )
            part[...] = given
        own = array if placement is None else placement.take(array)
        parameter.set_value(paddle.to_tensor(own).astype(parameter.dtype))
    applied.saved = tuple(sorted(names)) if expected is None else applied.saved


def _whole_modules(applied: Applied) -> tuple[str, ...]:
    """Names of the modules that are trained whole for peft, which takes all whose name ends in one."""
    modules: dict[str, bool] = {}
    for name, shape in applied.shapes.items():
        for stored in stored_matrices(applied.layout, name, shape):
            modules[stored.name.rpartition(".")[0]] = name in applied.saved
    chosen = [module for module, saved in modules.items() if saved]
    others = [module for module, saved in modules.items() if not saved]
    ends = {module: module.rpartition(".")[2] for module in chosen}
    return tuple(
        dict.fromkeys(
            module if any(other.endswith(end) for other in others) else end for module, end in ends.items()
        )
    )


def is_tied(model: Any) -> bool:
    return bool(model.config.tie_word_embeddings)


def _with_rank(settings: AdapterSettings, rank: int) -> AdapterSettings:
    """The same scale at another rank."""
    ratio = rank / settings.rank
    return replace(
        settings, rank=rank, alpha=settings.alpha * (math.sqrt(ratio) if settings.rank_stabilised else ratio)
    )


def _write_own(applied: Applied, folder: Path, facts: Mapping[str, Any], rank: int) -> None:
    own = {
        "format": 1,
        "method": applied.method,
        "rank": rank,
        "lora_plus_scale": applied.plus_scale,
        **facts,
    }
    _write(folder / OWN_FILE, own)


def _paddle_name(name: str) -> str:
    return f"ernie.{name.removeprefix('model.')}" if name.startswith("model.") else name


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
