"""Where an export may go: nothing of the user's is ever deleted, and the source stays whole."""

from pathlib import Path

from erniekit.checkpoint.manifest import MANIFEST, verify
from erniekit.errors import CheckpointError

# What model folders hold at their top; an existing folder with anything else is not ours to replace.
_EXPORT_FILES = {
    "config.json",
    "generation_config.json",
    "README.md",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors.index.json",
    "adapter_config.json",
    "lora_config.json",
    "erniekit_adapter.json",
    "report.md",
    "sensitivity.svg",
    "quantization.json",
    "qat.json",
    "qat.safetensors",
}
# Belongs to a training run, never to a finished model.
NOT_EXPORTED = {"optimizer.safetensors", "trainer_state.json", "manifest.json", "erniekit.yaml"}


def check_destination(destination: Path, source: Path, *, overwrite: bool, key: str = "export_dir") -> None:
    """Refuse a destination that is taken, or that is the source itself or around it.

    Args:
        key: which one names another destination.

    Raises:
        CheckpointError: says what lies there and what to write.
    """
    target, origin = destination.resolve(), source.resolve()
    if target == origin or target in origin.parents:
        raise CheckpointError(f"{destination} holds the source {source}; name another with {key}=...")
    if not destination.exists():
        return
    if not destination.is_dir():
        raise CheckpointError(f"{destination} is a file; name another destination with {key}=...")
    content = sorted(path.name for path in destination.iterdir())
    if not content:
        return
    if not overwrite:
        raise CheckpointError(
            f"{destination} is not empty ({', '.join(content[:3])}{', ...' if len(content) > 3 else ''}); "
            f"write overwrite_output_dir=true to replace it, or name another destination with {key}=..."
        )
    copied = {path.name for path in origin.iterdir() if path.is_file()} - NOT_EXPORTED
    foreign = [name for name in content if not _is_of_an_export(destination / name, copied)]
    if foreign:
        raise CheckpointError(
            f"{destination} holds {foreign[0]}, which no export writes, so it is not replaced even with "
            f"overwrite_output_dir; move it away, or name another destination with {key}=..."
        )


def verify_source(source: Path) -> None:
    """Check the files of a source that has a manifest (checkpoints of a run do; other models need none).

    Raises:
        CheckpointError: names the damaged file.
    """
    if (source / MANIFEST).exists():
        verify(source)


def _is_of_an_export(path: Path, copied: set[str]) -> bool:
    if path.is_dir():
        return False
    is_weights = path.name.startswith(("model", "adapter_model", "peft_model")) and path.suffix in (
        ".safetensors",
        ".gguf",
    )
    return is_weights or path.name in _EXPORT_FILES | copied
