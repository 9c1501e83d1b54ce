"""Quantised model folders of tiny models, for tests of what reads them."""

from pathlib import Path

from erniekit.config.load import config_from_dict
from erniekit.export.quantise import quantise_model
from erniekit.export.quantise_report import QuantisedModel
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint

TEXTS = (
    "the quick brown fox jumps over 13 lazy dogs",
    "a second line of other text",
    "so it goes, and goes on",
)


def write_texts(folder: Path, number: int = 24) -> Path:
    """A file of texts for stage PT."""
    path = folder / "texts.txt"
    path.write_text("\n\n".join(f"{TEXTS[index % 3]} {index}" for index in range(number)), encoding="utf-8")
    return path


def quantised_folder(folder: Path, config=None, **keys) -> tuple[Path, QuantisedModel]:
    """A tiny model in full under `folder`, and what `erniekit quantize` makes of it with some keys."""
    source = folder / "model"
    if not source.exists():
        folder.mkdir(exist_ok=True)
        write_tiny_checkpoint(source, config)
    texts = write_texts(folder)
    values = {
        "model_name_or_path": str(source),
        "stage": "PT",
        "compute_type": "fp32",
        "train_dataset_path": str(texts),
        "eval_dataset_path": str(texts),
        "max_seq_len": 64,
        "num_calibration_tokens": 512,
        "min_tokens_per_expert": 16,
        "output_dir": str(folder / "out"),
        "overwrite_output_dir": True,
        **keys,
    }
    loaded = config_from_dict(values, "quantize")
    done = quantise_model(loaded.config, source, Path(loaded.config.run.output_dir))
    return source, done
