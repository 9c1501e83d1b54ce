"""Formats by sensitivity: the error of every matrix in each of a few formats, and a choice below a budget."""

from erniekit.checkpoint.header import num_bytes
from erniekit.errors import ConfigError
from erniekit.export.stream import BlockStream
from erniekit.log import logger
from erniekit.quant.budget import Choice, choose_formats
from erniekit.quant.rtn import output_error, round_to_nearest
from erniekit.quant.statistics import InputWatch
from erniekit.quant.stored import specs_of

# Formats among which is chosen.
CANDIDATES = ("ccq2", "int4_g64", "int8")


def formats_by_sensitivity(
    stream: BlockStream, formats: dict[str, str], target_bits: float
) -> dict[str, str]:
    """A format of CANDIDATES for every matrix of `formats`.

    Args:
        stream: of the model in full, at its start.

    Raises:
        ConfigError: even the smallest formats take more than `target_bits`.
    """
    choices: dict[str, list[Choice]] = {}
    sizes = {}
    for index in range(stream.num_blocks):
        stream.fill(index)
        layers = {name: layer for name, layer in stream.matrices(index).items() if name in formats}
        with InputWatch(layers) as watch:
            stream.run(index)
        for name, layer in layers.items():
            weight = layer.weight.astype("float32").numpy()
            sizes[name] = weight.size
            choices[name] = []
            for format in CANDIDATES:
                lost = 0.0
                matrices = [weight] if weight.ndim == 2 else list(weight)
                for matrix, seen in zip(matrices, watch.inputs(name), strict=True):
                    done = round_to_nearest(
                        matrix, format, importance=seen.importance if seen.count else None
                    )
                    lost += output_error(matrix, done, seen.moment) / len(matrices)
                specs = specs_of(format, weight.shape[-2:])
                bits = 8 * len(matrices) * sum(num_bytes(word, shape) for _, word, shape in specs)
                choices[name].append(Choice(format, bits, lost))
        stream.drop(index)
        logger.info(f"block {index + 1} of {stream.num_blocks}: sensitivity measured")
    try:
        found = choose_formats(choices, sizes, target_bits)
    except ValueError as error:
        raise ConfigError(
            f"target_bits: {target_bits:g}: with their scales the smallest formats take {error} bits a "
            "weight; write a larger number"
        ) from error
    counts = {format: sum(chosen == format for chosen in found.values()) for format in CANDIDATES}
    logger.info(
        "formats by sensitivity: " + ", ".join(f"{count} in {name}" for name, count in counts.items())
    )
    return found
