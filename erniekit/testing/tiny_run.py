"""A complete tiny run on disk: model, data, configuration; for tests that start real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from erniekit.models.ernie45.config import Ernie45Config
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint

WORDS = ("red", "blue", "green", "one", "two", "three", "cat", "dog", "sun", "moon", "tea", "salt")


def write_rows(path: Path, count: int, *, seed: int = 0) -> Path:
    """A jsonl file of made-up questions and answers in the `erniekit` format; returns it."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        turns = int(random.integers(1, 3))
        pick = [" ".join(random.choice(WORDS, int(random.integers(1, 7)))) for _ in range(2 * turns)]
        lines.append(json.dumps({"src": pick[:turns], "tgt": pick[turns:]}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_pairs(path: Path, count: int, *, seed: int = 0) -> Path:
    """A jsonl file of made-up preference pairs, whose better answers begin with one word; returns it."""
    random = np.random.default_rng(seed)
    lines = []
    for _ in range(count):
        question, one, two = (" ".join(random.choice(WORDS, int(random.integers(1, 7)))) for _ in range(3))
        lines.append(json.dumps({"prompt": question, "chosen": f"good {one}", "rejected": f"bad {two}"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_run(folder: Path, numbers: Ernie45Config | None = None, **keys: Any) -> Path:
    """Model, training and held-out data and `run.yaml` in a folder; returns the YAML.

    Args:
        numbers: of the model; those of the tiny dense one without.
        keys: change or add keys of the configuration.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model_name_or_path": str(write_tiny_checkpoint(folder / "model", numbers)),
        "train_dataset_path": str(write_rows(folder / "train.jsonl", 40)),
        "eval_dataset_path": str(write_rows(folder / "eval.jsonl", 8, seed=1)),
        "output_dir": str(folder / "out"),
        "device": "cpu",
        "seed": 7,
        "max_seq_len": 96,
        "buffer_size": 16,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 8,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 1,
        "weight_decay": 0.1,
        "evaluation_strategy": "steps",
        "eval_steps": 4,
        "save_steps": 2,
    }
    path = folder / "run.yaml"
    # JSON is YAML: no special value can be misread.
    path.write_text(json.dumps(settings | keys, indent=1), encoding="utf-8")
    return path


def command(*words: str) -> list[str]:
    """The command line of ErnieKit in this Python."""
    return [sys.executable, "-m", "erniekit", *words]


def run_erniekit(*words: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, bounded; one thread, so that it repeats bit by bit beside other tests."""
    return subprocess.run(
        command(*words),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )
