"""`erniekit quantize`: a model in few bits, block by block, and what that costs.

In memory are one block, what enters it of all calibration tokens, and the statistics of its inputs. A
finished block is a folder of its own beside the destination (`blocks`), so a run that ends in whatever way
goes on after the last of them: blocks before are read back and passed through, which gives the same bits as
having just been made. The model's folder appears whole, and is then loaded anew and compared with the model
in full.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import prod
from pathlib import Path
from typing import Any

from erniekit.assemble import load_for_inference, number_types
from erniekit.checkpoint.atomic import clean_leftovers, write_file_atomic, write_folder
from erniekit.checkpoint.files import Item, TensorFolder, open_tensors, write_tensors
from erniekit.checkpoint.header import Spec, num_bytes
from erniekit.config.config import Config
from erniekit.errors import ConfigError
from erniekit.export.budget import formats_by_sensitivity
from erniekit.export.calibration import arrays_of, calibration_batches, held_out_batches
from erniekit.export.companions import write_companions
from erniekit.export.compressed import write_compressed
from erniekit.export.destination import check_destination, verify_source
from erniekit.export.dtypes import CONFIG_DTYPES
from erniekit.export.export import config_content, stored_dtype, write_json
from erniekit.export.quality import compare, hidden_states
from erniekit.export.quantise_block import Method, block_items, quantise_block
from erniekit.export.quantise_report import QuantisedModel, write_report
from erniekit.export.sizes import shard_bytes
from erniekit.export.stream import BlockStream
from erniekit.log import logger
from erniekit.models.registry import load_family, read_model_config
from erniekit.ops.rounding import KVRounding
from erniekit.quant.folder import KV_SUFFIXES, Quantisation, read_matrix, read_quantisation
from erniekit.quant.load import to_matrix
from erniekit.quant.schemes import FORMATS, SCHEMES, formats_of
from erniekit.quant.stored import SUFFIXES
from erniekit.quant.trained import TRAINED_FILE, TrainedScales, read_trained

_FACTS, _STATE = "block.json", "state.json"
_BLOCKS, _WHOLE = "blocks", "whole"


def quantise_model(config: Config, source: Path, output_dir: Path) -> QuantisedModel:
    """Quantise the model of a folder as a configuration says.

    Raises:
        CheckpointError: the source is damaged, or the destination is taken.
        ConfigError: blocks of other settings are there, or the budget of bits is too small.
        UnsupportedError: the source is quantised already.
    """
    method = Method(**asdict(config.quantize))
    destination = Path(method.quant_dir) if method.quant_dir else output_dir / "quantized"
    if read_quantisation(source) is not None:
        raise ConfigError(f"{source} is quantised already; name the model in full")
    verify_source(source)
    trained = _trained(source, method)
    if trained is not None:
        method = replace(
            method,
            quant_scheme=trained.scheme,
            clip_search=False,
            rotation_block_size=trained.hadamard_block_size,
        )
    calibration = calibration_batches(config, source) if trained is None else []
    held_out = held_out_batches(config, source)
    run = _Run(config, method, source, destination, [arrays_of(batch) for batch in calibration], trained)
    tokens = sum(batch.num_tokens for batch in calibration)
    logger.info(
        f"quantising {source} in {method.quant_scheme} ({SCHEMES[method.quant_scheme].words}) by "
        f"{method.in_words()}"
        + (f"; {tokens:,} tokens calibrate" if tokens else ", without data")
        + (f", after {trained.step:,} steps of training" if trained is not None else "")
    )
    quantisation = run.choose()
    expected = run.full_states(held_out) if held_out else []
    facts = run.blocks(quantisation)
    compressed = method.quant_layout == "compressed-tensors"
    whole = run.work / _WHOLE if compressed else destination
    sizes = run.write(quantisation, whole)
    quality = None
    if held_out:
        built = load_for_inference(whole, compute_type=config.model.compute_type)
        quality = compare(built.model, held_out, expected, hidden_states(built.model, held_out))
    if compressed:
        size = shard_bytes(config.export.max_shard_size)
        write_compressed(whole, destination, max_shard_bytes=size, overwrite=True)
    errors = {name: error for fact in facts for name, error in fact["errors"].items()}
    rare = {name: count for fact in facts for name, count in fact["rare"].items()}
    done = QuantisedModel(
        *(destination, config.model.model_name_or_path, quantisation, *sizes, tokens, errors, rare),
        *(quality, method.max_quality_drop),
    )
    write_report(done)
    run.clean()
    return done


def _trained(source: Path, method: Method) -> TrainedScales | None:
    """The scales of a checkpoint that was trained for its rounding, if they are asked for."""
    trained = read_trained(source)
    if method.quant_method == "trained":
        if trained is None:
            raise ConfigError(
                f"quant_method: trained takes the scales that training with qat_scheme leaves in "
                f"{TRAINED_FILE}, and {source} has none; write quant_method: rtn or gptq"
            )
        return trained
    if trained is not None:
        logger.warning(
            f"{source} was trained for {trained.scheme}; quant_method: trained makes of it what was "
            "evaluated while it was trained, and other methods something else"
        )
    return None


class _Run:
    """The parts of one quantisation, and the place of what is finished of it."""

    def __init__(
        self,
        config: Config,
        method: Method,
        source: Path,
        destination: Path,
        inputs: list[Any],
        trained: TrainedScales | None = None,
    ) -> None:
        self.config, self.method, self.source, self.destination = config, method, source, destination
        self.inputs, self.trained = inputs, trained
        self.model_config = read_model_config(source)
        self.family = load_family(self.model_config)
        self.weights = self.family.weights.open_weights(source, self.model_config)
        self.compute_dtype, _ = number_types(config.model.compute_type)
        self.shapes: dict[str, tuple[int, ...]] = self.family.weights.memory_shapes(self.model_config)
        self.work = destination.with_name(f"{destination.name}.{_BLOCKS}")

    def choose(self) -> Quantisation:
        """The format of every matrix; from a run before this one if that is what was asked for then."""
        state, asked = self.work / _STATE, self._digest()
        overwrite = self.config.run.overwrite_output_dir
        if state.exists():
            clean_leftovers(self.work)
            kept = json.loads(state.read_text(encoding="utf-8"))
            if kept["asked"] == asked:
                # The model's own files may be there, if the run ended after them.
                check_destination(self.destination, self.source, overwrite=True, key="quant_dir")
                number = sum(path.name.isdigit() for path in self.work.iterdir())
                logger.info(f"going on: {number} blocks are quantised already")
                return self._quantisation(kept["formats"])
            if not overwrite:
                raise ConfigError(
                    f"{self.work} holds blocks that were quantised from other data, another model, or with "
                    "other settings; write overwrite_output_dir=true to begin anew, or name another quant_dir"
                )
            shutil.rmtree(self.work)
        check_destination(self.destination, self.source, overwrite=overwrite, key="quant_dir")
        scheme = self.method.quant_scheme
        blocks = f"{self.family.plan.BLOCKS}."
        found = formats_of(self.shapes, self.family.plan.ROLES, scheme)
        names = {id(row): name for name, row in FORMATS.items()}
        formats = {name: names[id(row)] for name, row in found.items() if name.startswith(blocks)}
        if len(formats) < len(found):
            logger.info(f"{len(found) - len(formats)} matrices of multi-token prediction stay as they are")
        if self.method.target_bits is not None:
            stream = self._stream(self.inputs)
            formats = formats_by_sensitivity(stream, formats, self.method.target_bits)
        self.work.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"asked": asked, "formats": formats}, indent=1) + "\n"
        write_file_atomic(state, text.encode())
        return self._quantisation(formats)

    def full_states(self, batches: list[Any]) -> list[Any]:
        """Hidden states of the model in full, a block in memory at a time."""
        stream = self._stream([arrays_of(batch) for batch in batches])
        for index in range(stream.num_blocks):
            stream.fill(index)
            stream.run(index)
            stream.drop(index)
        return stream.finish()

    def blocks(self, quantisation: Quantisation) -> list[dict[str, Any]]:
        """Quantise block after block; returns what is known of each."""
        stream = self._stream(self.inputs)
        facts = []
        for index in range(stream.num_blocks):
            folder = self.work / f"{index:05d}"
            stream.fill(index)
            if not folder.exists():
                result = quantise_block(stream, index, quantisation, self.method, self.trained)
                fact = {"errors": result.errors, "rare": result.rare}
                with write_folder(folder) as part:
                    items = block_items(stream, index, result)
                    write_tensors(part, items, max_shard_bytes=1 << 62, metadata={"format": "np"})
                    (part / _FACTS).write_text(json.dumps(fact) + "\n", encoding="utf-8")
                worst = max(result.errors.items(), key=lambda item: item[1], default=("", 0.0))
                logger.info(
                    f"block {index + 1} of {stream.num_blocks}: largest error {worst[1]:.2g} ({worst[0]})"
                )
            facts.append(json.loads((folder / _FACTS).read_text(encoding="utf-8")))
            self._install(stream, index, quantisation, open_tensors(folder))
            stream.run(index)
            stream.drop(index)
        return facts

    def write(self, quantisation: Quantisation, place: Path) -> tuple[float, int, int]:
        """The finished folder at a place; gives bits a weight, its bytes, and those of the model in full."""
        config, settings = self.model_config, self.config.export
        parts = [open_tensors(path) for path in sorted(self.work.iterdir()) if path.name.isdigit()]
        blocks = f"{self.family.plan.BLOCKS}."
        outer = [name for name in self.shapes if not name.startswith(blocks)]
        specs: list[Spec] = [
            (each.name, self.weights.dtype(each.parameter), each.shape)
            for each in self.family.weights.stored_tensors(config, "paddle")
            if not each.parameter.startswith(blocks)
        ]
        specs += [spec for part in parts for spec in part.specs()]
        with write_folder(place, overwrite=True) as folder:
            write_tensors(
                folder,
                self._items(outer, parts),
                max_shard_bytes=shard_bytes(settings.max_shard_size),
                metadata={"format": "np"},
                specs=specs,
            )
            content = config_content(config, "paddle", CONFIG_DTYPES[stored_dtype(self.source)])
            content["quantization_config"] = quantisation.to_json(self.family.plan.ROLES)
            write_json(folder / "config.json", content)
            write_companions(
                self.source,
                folder,
                config,
                copy_tokenizer=settings.copy_tokenizer,
                chat_template=self.config.sequences.chat_template,
            )
        ends = tuple(f".{suffix}" for suffix in SUFFIXES)
        packed = sum(num_bytes(word, shape) for name, word, shape in specs if name.endswith(ends))
        numbers = sum(prod(self.shapes[name]) for name in quantisation.formats)
        full = sum(num_bytes(self.weights.dtype(name), shape) for name, shape in self.shapes.items())
        return 8 * packed / max(numbers, 1), sum(num_bytes(word, shape) for _, word, shape in specs), full

    def clean(self) -> None:
        """Remove the blocks."""
        shutil.rmtree(self.work)

    def _items(self, outer: list[str], parts: list[TensorFolder]) -> Iterator[Item]:
        """Everything that the folder holds, one tensor at a time."""
        plain = ((name, self.weights.dtype(name), self.weights.parameter(name)) for name in outer)
        yield from self.family.weights.save_layout(plain, "paddle", self.model_config)
        for part in parts:
            yield from part.items()

    def _stream(self, inputs: list[Any]) -> BlockStream:
        stream = BlockStream(self.model_config, self.weights, inputs, compute_dtype=self.compute_dtype)
        stream.start()
        return stream

    def _install(
        self, stream: BlockStream, index: int, quantisation: Quantisation, tensors: TensorFolder
    ) -> None:
        """Give a block the numbers that were written of it."""
        prefix = stream.prefix(index)
        names = {
            name: self.family.weights.matrix_names(name, self.shapes[name], self.model_config)
            for name in quantisation.formats
            if name.startswith(prefix)
        }
        layers = stream.matrices(index)
        for name, stored in names.items():
            shape = self.shapes[name]
            rotation = quantisation.rotation(name, shape[-2])
            matrix = read_matrix(tensors, quantisation.formats[name], shape, stored, rotation)
            del layers[name].weight
            layers[name].weight = to_matrix(matrix, stream.dtype)
        if quantisation.kv_cache is not None:
            place = next(name for name in tensors.names() if name.endswith(KV_SUFFIXES[0]))
            largest = [tensors.read(place.removesuffix(KV_SUFFIXES[0]) + suffix) for suffix in KV_SUFFIXES]
            attention = stream.layer(index, self.family.plan.WHOLE_ATTENTION)
            attention.kv_rounding = KVRounding.of(quantisation.kv_cache, *largest)
        stream.take(index, tensors, set(quantisation.formats))

    def _quantisation(self, formats: dict[str, str]) -> Quantisation:
        scheme = self.method.quant_scheme
        return Quantisation(
            scheme, formats, self.method.rotation_block_size, SCHEMES[scheme].kv_cache, self.method.in_words()
        )

    def _digest(self) -> str:
        """What the numbers of a block follow from: settings, weights, calibration data."""
        found = hashlib.sha256()
        settings = {
            **asdict(self.method),
            "max_quality_drop": None,
            "quant_dir": None,
            "dtype": self.compute_dtype,
            "trained": None if self.trained is None else self.trained.facts(),
        }
        found.update(json.dumps(settings, sort_keys=True).encode())
        for file in self.weights.tensors.files():
            status = file.stat()
            found.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
        for arrays in [*self.inputs, self.trained.weights if self.trained is not None else {}]:
            for name, array in arrays.items():
                found.update(f"{name} {array.shape}".encode())
                found.update(array.tobytes())
        return found.hexdigest()
