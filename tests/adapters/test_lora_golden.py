"""Adapters that peft saved: read here they give peft's logits, loss and gradients (see tests/golden)."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from erniekit.adapters import state
from erniekit.checkpoint.adapter_files import PEFT_BASENAME, PREFIX, open_adapter
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.checkpoint.raw import load_weights
from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie45 import weights as layouts
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.layouts import memory_shapes
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from tests.adapters import models
from tests.golden.make_ernie45 import draw_ids, draw_weights

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = json.loads((GOLDEN / "lora.json").read_text())
# In the order in which they were drawn.
CASES = ["query_value", "all_rank_stabilised", "lengths", "bias_and_patterns", "embedding_and_head"]


@pytest.fixture(scope="module")
def golden():
    tensors = open_tensors(GOLDEN, "lora")
    return {name: tensors.read(name) for name in tensors.names()}


def build(case: str, folder: Path) -> Ernie45:
    """The model of a case without its adapter."""
    config = Ernie45Config(**ABOUT["cases"][case]["numbers"])
    memory = [(name, "F32", np.zeros(shape, np.float32)) for name, shape in memory_shapes(config).items()]
    shapes = {name: array.shape for name, _, array in layouts.save_layout(memory, "hf", config)}
    drawn = draw_weights(shapes, CASES.index(case))
    items = [(name, "F32", array) for name, array in drawn.items()]
    write_tensors(folder, items, max_shard_bytes=10**9, metadata={"format": "pt"})
    model = Ernie45(config)
    load_weights(model, layouts.load_weights(folder, config))
    return model


def part(golden, case: str, what: str) -> dict[str, np.ndarray]:
    start = f"{case}.{what}."
    return {name.removeprefix(start): array for name, array in golden.items() if name.startswith(start)}


def close(found, expected, tolerance: float = 1e-5) -> None:
    scale = np.abs(expected).max()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= tolerance * scale, np.abs(found - expected).max() / scale


@pytest.mark.parametrize("case", CASES)
def test_equals_peft(golden, tmp_path: Path, case: str) -> None:
    model = build(case, tmp_path)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    items = [(name, "F32", array) for name, array in part(golden, case, "adapter").items()]
    write_tensors(adapter, items, max_shard_bytes=10**9, metadata={}, basename=PEFT_BASENAME)
    (adapter / "adapter_config.json").write_text(json.dumps(ABOUT["cases"][case]["settings"]))
    applied = state.attach_file(model, models.layout(model), open_adapter(adapter))
    for name, parameter in model.named_parameters():
        parameter.stop_gradient = ".lora_" not in name and name not in applied.saved

    length = ABOUT["length"]
    ids = draw_ids(length, model.config.vocab_size, CASES.index(case))
    positions = paddle.arange(length).unsqueeze(0).expand([2, length])
    hidden = model(paddle.to_tensor(ids[:, :-1]), positions, paddle.zeros([2, length], dtype="int32"))
    rows = hidden.reshape([-1, model.config.hidden_size])
    close(model.logits(rows).numpy(), golden[f"{case}.logits"].reshape(2 * length, -1))
    labels = paddle.to_tensor(np.ascontiguousarray(ids[:, 1:]).reshape(-1))
    loss, metrics = chunked_cross_entropy(rows, model.head(), labels, chunk_tokens=5)
    mean = loss / metrics["num_tokens"]
    close(mean.numpy().reshape(1), golden[f"{case}.loss"])
    if ABOUT["cases"][case]["settings"]["rank_pattern"]:
        return  # factors of different ranks and scales are one here
    mean.backward()
    found = gradients_by_name(applied)
    wanted = part(golden, case, "grad")
    assert len(wanted) == len(items)
    for name, expected in wanted.items():
        close(found[name], expected, 1e-4 if "magnitude" in name else 2e-5)


def gradients_by_name(applied) -> dict[str, np.ndarray]:
    """The gradients of an adapter under the names of peft's parameters."""
    found = {}
    for layer in applied.layers.values():
        a, b = (gradients.of(factor).numpy() for factor in (layer.lora_A, layer.lora_B))
        for piece, in_a, in_b in layer.places():
            found[f"{PREFIX}{piece.name}.lora_A.weight"] = a[in_a].T
            found[f"{PREFIX}{piece.name}.lora_B.weight"] = b[in_b].T
            if layer.stored_magnitudes():
                name = f"{PREFIX}{piece.name}.lora_magnitude_vector.weight"
                found[name] = gradients.of(layer.lora_magnitude).numpy()[in_b[-1]]
    parameters = dict(applied.model.named_parameters())
    for name in applied.saved:
        gradient = gradients.of(parameters[name]).numpy()
        found[f"{PREFIX}{name}"] = gradient.T if name.startswith("lm_head") else gradient
    return found


def test_the_golden_file_holds_what_is_said(golden) -> None:
    assert set(CASES) == set(ABOUT["cases"]) and len(CASES) == 5
    assert len([name for name in golden if ".grad." in name]) >= 8 + 28 + 42 + 12 + 6
