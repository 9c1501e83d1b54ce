"""Mixtures of experts against golden numbers from transformers: logits, loss, gradients, names of tensors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.checkpoint.raw import load_weights
from erniekit.losses.cross_entropy import chunked_cross_entropy
from erniekit.models.ernie45.layouts import stored_tensors
from erniekit.models.ernie45.model import Ernie45
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.weights import load_weights as read_weights
from erniekit.ops import gradients
from tests.golden.make_ernie45_moe import CASES, draw_ids, draw_types, draw_weights

GOLDEN = Path(__file__).parents[1] / "golden"
ABOUT = json.loads((GOLDEN / "ernie45_moe.json").read_text())
NAMES = list(CASES)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    tensors = open_tensors(GOLDEN, "ernie45_moe")
    return {name: tensors.read(name) for name in tensors.names()}


def build(case: str, folder: Path) -> Ernie45:
    """The model of a case, its weights read from a Hugging Face folder."""
    config = Ernie45MoeConfig.from_json(CASES[case])
    shapes = {stored.name: stored.shape for stored in stored_tensors(config, "hf")}
    drawn = draw_weights(shapes, NAMES.index(case))
    items = [(name, "F32", array) for name, array in drawn.items()]
    write_tensors(folder, items, max_shard_bytes=10**9, metadata={"format": "pt"})
    model = Ernie45(config)
    load_weights(model, read_weights(folder, config))
    return model


def gradient_as_theirs(model: Ernie45, name: str) -> np.ndarray:
    """The gradient of a parameter of transformers, from the one that holds it here."""
    ours = name.replace("text_moe.experts.", "experts.").replace("vision_moe.experts.", "vision_experts.")
    ours = ours.replace("text_moe.gate.weight", "gate.weight")
    ours = ours.replace("vision_moe.gate.weight", "gate.weight_1")
    if ".experts." in ours or ".vision_experts." in ours:
        ours = ours.replace("gate_up_proj", "up_gate_proj") + ".weight"
    columns: Any = slice(None)
    for piece, fused, part in (("up_proj", "up_gate_proj", 1), ("q_proj", "qkv_proj", 0)):
        if f".{piece}." in ours:
            ours = ours.replace(f".{piece}.", f".{fused}.")
            config = model.config
            width = config.num_attention_heads * config.head_dim
            if part:
                width = dict(model.named_parameters())[ours].shape[-1] // 2
            columns = slice(part * width, (part + 1) * width)
    found = gradients.of(dict(model.named_parameters())[ours])
    assert found is not None, ours
    array = found.numpy()[..., columns]
    turned = array.ndim >= 2 and "embed_tokens" not in name
    return np.swapaxes(array, -1, -2) if turned else array


def close(found: np.ndarray, expected: np.ndarray) -> None:
    scale = np.abs(expected).max()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * scale, np.abs(found - expected).max() / scale


@pytest.mark.parametrize("length", ABOUT["lengths"])
@pytest.mark.parametrize("case", NAMES)
def test_equals_transformers(golden: dict[str, np.ndarray], tmp_path: Path, case: str, length: int) -> None:
    model = build(case, tmp_path)
    ids, types = draw_ids(length, NAMES.index(case)), draw_types(case, length)
    hidden = model(
        paddle.to_tensor(ids[:, :-1]),
        paddle.arange(length).unsqueeze(0).expand([2, length]),
        paddle.zeros([2, length], dtype="int32"),
        token_type_ids_BT=None if types is None else paddle.to_tensor(types),
    )
    prefix = f"{case}.{length}"
    close(model.logits(hidden).numpy(), golden[f"{prefix}.logits"])
    labels = paddle.to_tensor(np.ascontiguousarray(ids[:, 1:]).reshape(-1))
    flat = hidden.reshape([-1, model.config.hidden_size])
    loss, metrics = chunked_cross_entropy(flat, model.head(), labels, chunk_tokens=5)
    mean = loss / metrics["num_tokens"]
    close(mean.numpy().reshape(1), golden[f"{prefix}.loss"])
    mean.backward()
    wanted = {n.split(".grad.")[1]: a for n, a in golden.items() if n.startswith(f"{prefix}.grad.")}
    assert bool(wanted) == (length == ABOUT["lengths"][-1])
    for name, expected in wanted.items():
        close(gradient_as_theirs(model, name), expected)


@pytest.mark.parametrize("case", NAMES)
def test_the_names_are_those_that_transformers_stores(golden: dict[str, np.ndarray], case: str) -> None:
    stored = set(golden[f"{case}.names"].tobytes().decode().split("\n"))
    ours = {stored.name for stored in stored_tensors(Ernie45MoeConfig.from_json(CASES[case]), "hf")}
    of_text = {n for n in stored if not any(part in n for part in ("vision_model", "resampler"))}
    assert ours == of_text


def test_the_golden_file_holds_what_is_said(golden: dict[str, np.ndarray]) -> None:
    assert ABOUT["cases"] == NAMES and len(NAMES) == 5
    found = {case: sum(name.startswith(f"{case}.23.grad.") for name in golden) for case in NAMES}
    assert found == {"shared": 8, "untied": 8, "bias": 10, "text": 8, "mixed": 11}
