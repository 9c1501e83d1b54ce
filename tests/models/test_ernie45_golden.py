"""Logits, loss and gradients against golden numbers from transformers (see tests/golden)."""

import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.checkpoint.raw import load_weights
from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie45 import weights as layouts
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from tests.golden.make_ernie45 import draw_ids, draw_weights

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = json.loads((GOLDEN / "ernie45.json").read_text())
CASES = list(ABOUT["cases"])


@pytest.fixture(scope="module")
def golden():
    tensors = open_tensors(GOLDEN, "ernie45")
    return {name: tensors.read(name) for name in tensors.names()}


def build(case, tmp_path):
    """The model of a case, its weights read from a Hugging Face folder."""
    config = Ernie45Config(**ABOUT["cases"][case])
    memory = [
        (name, "F32", np.zeros(shape, np.float32)) for name, shape in layouts.memory_shapes(config).items()
    ]
    shapes = {name: array.shape for name, _, array in layouts.save_layout(memory, "hf", config)}
    drawn = draw_weights(shapes, CASES.index(case))
    items = [(name, "F32", array) for name, array in drawn.items()]
    write_tensors(tmp_path, items, max_shard_bytes=10**9, metadata={"format": "pt"})
    model = Ernie45(config)
    load_weights(model, layouts.load_weights(tmp_path, config))
    return model, config


def close(found, expected):
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= 1e-5 * scale, np.abs(found - expected).max() / scale


@pytest.mark.parametrize("length", ABOUT["lengths"])
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(golden, tmp_path, case, length):
    model, config = build(case, tmp_path)
    ids = draw_ids(length, config.vocab_size, CASES.index(case))
    positions = paddle.arange(length).unsqueeze(0).expand([2, length])
    hidden = model(paddle.to_tensor(ids[:, :-1]), positions, paddle.zeros([2, length], dtype="int32"))
    prefix = f"{case}.{length}"
    close(model.logits(hidden).numpy(), golden[f"{prefix}.logits"])
    labels = paddle.to_tensor(np.ascontiguousarray(ids[:, 1:]).reshape(-1))
    loss, metrics = chunked_cross_entropy(
        hidden.reshape([-1, config.hidden_size]), model.head(), labels, chunk_tokens=5
    )
    mean = loss / metrics["num_tokens"]
    close(mean.numpy().reshape(1), golden[f"{prefix}.loss"])
    mean.backward()
    memory = [(name, "F32", gradients.of(parameter).numpy()) for name, parameter in model.named_parameters()]
    found = {name: array for name, _, array in layouts.save_layout(memory, "hf", config)}
    wanted = {n.split(".grad.")[1]: a for n, a in golden.items() if n.startswith(f"{prefix}.grad.")}
    assert bool(wanted) == (length == ABOUT["lengths"][-1])
    for name, expected in wanted.items():
        close(found[name], expected)


def test_the_golden_file_holds_what_is_said(golden):
    assert len(CASES) == 4 and len(ABOUT["lengths"]) == 3
    gradients = [name for name in golden if ".grad." in name]
    assert len(gradients) == 4 * 10 + 1 + 2  # ten parameters in each case, a head, two biases
