"""A checkpoint as a folder with a GGUF file for llama.cpp and a card, read back before it gets its name."""

from dataclasses import dataclass
from pathlib import Path

from erniekit.checkpoint.atomic import write_folder
from erniekit.data.template import load_template
from erniekit.data.tokenizer import load_tokenizer
from erniekit.errors import CheckpointError
from erniekit.export.card import build_card, read_run_facts
from erniekit.export.gguf_file import Speech, Written, require_gguf, write_gguf
from erniekit.export.gguf_numbers import NUMBERS
from erniekit.export.gguf_tensors import check_supported, is_left_out
from erniekit.export.gguf_vocabulary import read_vocabulary
from erniekit.export.source import Source
from erniekit.generate.ends import end_token_ids
from erniekit.generate.text import read_generation_defaults
from erniekit.log import logger
from erniekit.models.registry import load_family

_WORDS = {"F32": "fp32", "BF16": "bf16", "F16": "fp16"}


@dataclass(frozen=True)
class ExportedGguf:
    """A finished export: where it is, and what is in its file."""

    folder: Path
    file: Path
    dtype: str
    written: Written
    merged: bool

    def describe(self) -> str:
        """What was written, in a sentence."""
        types = ", ".join(f"{count} in {number}" for number, count in self.written.types.items())
        merged = "with the adapter merged in fp32, " if self.merged else ""
        return (
            f"{self.file.name}: {merged}{sum(self.written.types.values())} tensors ({types}), "
            f"{8 * self.written.num_bytes / self.written.num_parameters:.2f} bits a weight; all read back as "
            "they were written"
        )


def export_gguf(
    source: Source,
    destination: Path,
    title: str,
    *,
    overwrite: bool,
    export_dtype: str,
    stored: str,
    copy_tokenizer: bool,
) -> ExportedGguf:
    """Write the folder.

    Args:
        export_dtype: `auto`, or a row of `gguf_numbers.NUMBERS`.
        stored: word of safetensors of most numbers of the source, for `auto`.

    Raises:
        CheckpointError: the model has no tokenizer, or something reads back differently.
        UnsupportedError: llama.cpp has no such model or tokenizer, or the package `gguf` is missing.
    """
    require_gguf()
    check_supported(source.config)
    word = _WORDS[stored] if export_dtype == "auto" else export_dtype
    assert word in NUMBERS, word
    facts = read_run_facts(source.checkpoint)
    speech = _speech(source, facts.settings.get("chat_template")) if copy_tokenizer else None
    left_out = [
        name for name in load_family(source.config).weights.memory_shapes(source.config) if is_left_out(name)
    ]
    if left_out:
        logger.info(f"{len(left_out)} tensors of multi-token prediction are left out: llama.cpp has no place")
    logger.info(f"exporting {source.checkpoint} to {destination} as GGUF in {word}")
    with write_folder(destination, overwrite=overwrite) as folder:
        name = f"model-{word}.gguf"
        written = write_gguf(
            folder / name, source.config, source.items("F32"), word, name=title, speech=speech
        )
        exported = ExportedGguf(destination, destination / name, word, written, source.adapter is not None)
        card = build_card(
            facts,
            title=title,
            layout="gguf",
            dtype=word,
            num_parameters=written.num_parameters,
            verified=exported.describe(),
            has_template=speech is not None and speech.template is not None,
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
    return exported


def _speech(source: Source, chosen: str | None) -> Speech:
    folder = source.companions
    try:
        tokenizer = load_tokenizer(folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; write copy_tokenizer=false to export without one") from error
    template = load_template(tokenizer, chat_template=chosen)
    ends = end_token_ids(read_generation_defaults(folder), source.config, tokenizer, template)
    vocabulary = read_vocabulary(folder, source.config.vocab_size)
    return Speech(vocabulary, tuple(ends), None if template is None else template.source)
