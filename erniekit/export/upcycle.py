"""A dense model folder as the folder of a mixture of experts with the same logits; one tensor at a time."""

from dataclasses import dataclass
from pathlib import Path

from erniekit.checkpoint.atomic import write_folder
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, ConfigError
from erniekit.export.convert import copy_companions, refuse_occupied
from erniekit.export.destination import verify_source
from erniekit.export.dtypes import CONFIG_DTYPES, convert
from erniekit.export.export import EXPORT_LAYOUTS, check_word, config_content, stored_dtype, write_json
from erniekit.export.sizes import shard_bytes
from erniekit.log import logger
from erniekit.models.registry import load_family, read_model_config

# word -> type, and default (None: must be given)
_WORDS: dict[str, tuple[type, float | None]] = {
    "experts": (int, None),
    "top_k": (int, None),
    "start": (int, 0),
    "interval": (int, 1),
    "noise": (float, 0.0),
    "seed": (int, 0),
}


@dataclass(frozen=True)
class Upcycled:
    """A finished mixture of experts."""

    folder: Path
    num_layers: int
    num_parameters: int
    num_active_parameters: int
    num_bytes: int


def parse_upcycle(text: str) -> dict[str, float]:
    """`experts=8,top_k=2,start=1` as numbers; `interval`, `noise` and `seed` are understood too.

    Raises:
        ConfigError: a word is not known, given twice, missing, or no number of its kind.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        word, equals, value = part.strip().partition("=")
        if word not in _WORDS or not equals:
            raise ConfigError(f"--upcycle: {part.strip()!r} is none of {', '.join(f'{w}=N' for w in _WORDS)}")
        if word in found:
            raise ConfigError(f"--upcycle: {word} is given twice")
        try:
            found[word] = _WORDS[word][0](value)
        except ValueError as error:
            kind = "whole number" if _WORDS[word][0] is int else "number"
            raise ConfigError(f"--upcycle: {word}={value} is no {kind}") from error
        if word in ("noise", "seed") and found[word] < 0:
            raise ConfigError(f"--upcycle: {word}={value} is below 0")
    missing = [word for word, (_, default) in _WORDS.items() if default is None and word not in found]
    if missing:
        raise ConfigError(
            f"--upcycle: {' and '.join(missing)} must be given, as in experts=8,top_k=2,start=1"
        )
    return {word: found.get(word, default or 0) for word, (_, default) in _WORDS.items()}


def upcycle_model(
    source: Path,
    destination: Path,
    *,
    experts: int,
    top_k: int,
    start: int = 0,
    interval: int = 1,
    noise: float = 0.0,
    seed: int = 0,
    layout: str = "hf",
    max_shard_size: float | str = 5,
) -> Upcycled:
    """Write the mixture of experts that a dense model becomes; see the family's `upcycle.py`.

    Raises:
        CheckpointError: the source is damaged or no dense model, or the destination holds something.
        ConfigError: a number does not fit the model.
    """
    check_word("--to", layout, EXPORT_LAYOUTS)
    refuse_occupied(destination)
    verify_source(source)
    dense = read_model_config(source)
    family = load_family(dense)
    recipe = family.upcycle
    config = recipe.upcycled_config(dense, experts=experts, top_k=top_k, start=start, interval=interval)
    weights = family.weights.open_weights(source, dense)
    dtypes = recipe.upcycled_dtypes(weights, config)
    logger.info(f"upcycling {source} to {experts} experts, {top_k} a token: {destination}")
    items = recipe.upcycled_items(weights, config, convert=convert, noise=noise, seed=seed)
    with write_folder(destination) as folder:
        write_tensors(
            folder,
            family.weights.save_layout(items, layout, config),
            max_shard_bytes=shard_bytes(max_shard_size),
            metadata={"format": "pt" if layout == "hf" else "np"},
            specs=family.weights.layout_specs(config, layout, dtypes),
        )
        write_json(
            folder / "config.json",
            config_content(config, layout, CONFIG_DTYPES[stored_dtype(folder)]),
        )
        copy_companions(source, folder)
        # Read back as a reader would: numbers, names, shapes and types.
        if read_model_config(folder) != config:
            raise CheckpointError(f"{folder}: config.json reads back as another model than was written")
        load_family(config).weights.open_weights(folder, config)
        num_bytes = sum(path.stat().st_size for path in open_tensors(folder).files())
    layers = sum(map(config.is_moe_layer, range(config.num_hidden_layers)))
    return Upcycled(destination, layers, config.num_parameters(), config.num_active_parameters(), num_bytes)
