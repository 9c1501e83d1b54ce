"""Folding an adapter into tensors that pass by, against the model in memory."""

from pathlib import Path

import numpy as np
import pytest

from erniekit.adapters import lora
from erniekit.adapters.dora import DoraLinear
from erniekit.adapters.layers import LoraLinear
from erniekit.adapters.merge import Merge
from erniekit.adapters.pissa import PissaLinear
from erniekit.checkpoint.adapter_files import open_adapter
from erniekit.errors import CheckpointError
from tests.adapters import models
from tests.adapters.test_state import save, save_paddle

MODELS = {"dense": models.dense, "experts": models.moe}


def merged(model, folder: Path) -> dict[str, np.ndarray]:
    merge = Merge(open_adapter(folder), models.layout(model))
    found = {}
    for name, parameter in model.named_parameters():
        array = merge.of(name, "F32", parameter.numpy())
        if array is not None:
            found[name] = array
    merge.check_all_used()
    return found


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("method", [LoraLinear, DoraLinear, PissaLinear])
def test_it_is_the_merge_of_the_model(tmp_path: Path, method, kind: str) -> None:
    words = ["all-linear"] if method is not LoraLinear or kind == "dense" else ["all-linear", "experts"]
    applied = models.apply(MODELS[kind](), method, lora_target=words, lora_modules_to_save=["embed_tokens"])
    models.disturb(applied)
    found = merged(MODELS[kind](), save(applied, tmp_path / "a"))
    names = lora.merge(applied)
    parameters = {name: parameter.numpy() for name, parameter in applied.model.named_parameters()}
    assert set(found) == {*names, "model.embed_tokens.weight"}
    for name, array in found.items():
        assert array.dtype == np.float32
        models.near(array, parameters[name], 1e-5)


def test_paddles_format(tmp_path: Path) -> None:
    applied = models.apply(models.dense())
    models.disturb(applied)
    one = merged(models.dense(), save(applied, tmp_path / "peft"))
    other = merged(models.dense(), save_paddle(applied, tmp_path / "paddle"))
    assert set(one) == set(other)
    for name, array in one.items():
        models.near(other[name], array, 1e-6)


def test_another_model_is_refused(tmp_path: Path) -> None:
    folder = save(models.apply(models.dense()), tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"layers\.1\..*another model"):
        merged(models.dense(num_hidden_layers=1), folder)
    with pytest.raises(CheckpointError, match="another model"):
        merged(models.dense(hidden_size=48), folder)
