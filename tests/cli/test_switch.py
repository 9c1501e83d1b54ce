"""Adapters of a chat are listed, switched and taken off."""

from pathlib import Path

import numpy as np
import pytest

from erniekit import assemble
from erniekit.cli.switch import AdapterSwitch
from erniekit.errors import ConfigError
from erniekit.export.proof import logits_of
from erniekit.testing.tiny_checkpoint import write_tiny_checkpoint
from tests.adapters.models import disturb
from tests.train.test_contents import build, write

IDS = np.arange(3, 33).reshape(2, 15)


def test_switching(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "model")
    folders, expected = [], []
    for seed, method in enumerate(("LoRA", "DoRA")):
        built = build(source, method, lora_target=("q_proj", "down_proj") if seed else ())
        built.model.eval()
        disturb(built.adapter, seed=seed)
        folders.append(write(tmp_path / method, built, source))
        expected.append(logits_of(built.model, IDS))
    plain = logits_of(assemble.load_for_inference(source, compute_type="fp32").model, IDS)
    built = assemble.load_for_inference(source, folders, compute_type="fp32")
    switch = AdapterSwitch(built, folders)
    assert switch.lines()[0].startswith("* 1") and str(folders[1]) in switch.lines()[1]
    for word, logits in (
        ("1", expected[0]),
        ("DoRA", expected[1]),
        ("off", plain),
        ("off", plain),
        (str(folders[0]), expected[0]),
        ("2", expected[1]),
    ):
        switch.use(word)
        found = logits_of(built.model, IDS)
        assert np.abs(found - logits).max() < 1e-5 * np.abs(logits).max(), word
    assert switch.lines()[1].startswith("* 2")
    for wrong in ("3", "0", "lora"):
        with pytest.raises(ConfigError, match="no adapter here; write 1 to 2, or off"):
            switch.use(wrong)


def test_without_adapters(tmp_path: Path) -> None:
    built = assemble.load_for_inference(write_tiny_checkpoint(tmp_path / "model"), compute_type="fp32")
    assert "lora_path" in AdapterSwitch(built, []).lines()[0]
