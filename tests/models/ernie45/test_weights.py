"""Layouts of ERNIE 4.5 dense: exact names and shapes, bytes that survive every way around."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError
from erniekit.models.ernie45 import weights as weights_module
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.layouts import memory_shapes, stored_tensors
from erniekit.models.ernie45.weights import (
    detect_layout,
    layout_specs,
    load_weights,
    open_weights,
    save_layout,
)

V, H, INNER, HEADS, KV, D = 50, 12, 20, 3, 1, 8  # heads * head_dim is not hidden_size
Tensors = dict[str, np.ndarray]


def config(**changes: Any) -> Ernie45Config:
    numbers: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": H,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "head_dim": D,
    }
    return Ernie45Config(**(numbers | changes))


def hf_tensors(of: Ernie45Config, dtype: str = "<f4") -> Tensors:
    """A model as transformers stores it, written out by hand: independent of the code under test."""
    hidden, inner = of.hidden_size, of.intermediate_size
    query, key = of.num_attention_heads * of.head_dim, of.num_key_value_heads * of.head_dim
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (of.vocab_size, hidden)}
    for layer in range(of.num_hidden_layers):
        block = f"model.layers.{layer}"
        shapes[f"{block}.input_layernorm.weight"] = (hidden,)
        linears = {
            "q_proj": (query, hidden),
            "k_proj": (key, hidden),
            "v_proj": (key, hidden),
            "o_proj": (hidden, query),
        }
        for name, shape in linears.items():
            shapes[f"{block}.self_attn.{name}.weight"] = shape
            if of.use_bias:
                shapes[f"{block}.self_attn.{name}.bias"] = shape[:1]
        shapes[f"{block}.post_attention_layernorm.weight"] = (hidden,)
        linears = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        for name, shape in linears.items():
            shapes[f"{block}.mlp.{name}.weight"] = shape
            if of.use_bias:
                shapes[f"{block}.mlp.{name}.bias"] = shape[:1]
    shapes["model.norm.weight"] = (hidden,)
    if not of.tie_word_embeddings:
        shapes["lm_head.weight"] = (of.vocab_size, hidden)
    rng = np.random.default_rng(0)
    sized = np.dtype(dtype).itemsize
    return {
        name: rng.integers(0, 256, (*shape, sized)).astype(np.uint8).view(dtype)[..., 0]
        for name, shape in shapes.items()
    }


def store(folder: Path, tensors: Tensors, *, dtype: str = "F32", limit: int = 10**9) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    items = [(name, dtype, array) for name, array in tensors.items()]
    write_tensors(folder, items, max_shard_bytes=limit, metadata={"format": "pt"})
    return folder


def paddle_tensors(hf: Tensors, prefix: str = "ernie.", *, fused: bool = True) -> Tensors:
    """The same model as Paddle stores it, by plain numpy."""
    result: Tensors = {}

    def put(name: str, array: np.ndarray) -> None:
        result[name if name.startswith("lm_head") else prefix + name.removeprefix("model.")] = array

    def turned(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.T)

    for name, array in hf.items():
        if fused and ".q_proj." in name:
            parts = [turned(hf[name.replace("q_proj", piece)]) for piece in ("q_proj", "k_proj", "v_proj")]
            put(name.replace("q_proj", "qkv_proj"), np.concatenate(parts, axis=-1))
        elif fused and ".gate_proj." in name:
            parts = [turned(hf[name.replace("gate_proj", piece)]) for piece in ("gate_proj", "up_proj")]
            put(name.replace("gate_proj", "up_gate_proj"), np.concatenate(parts, axis=-1))
        elif not (fused and any(f".{piece}." in name for piece in ("k_proj", "v_proj", "up_proj"))):
            put(name, array if "embed_tokens" in name else turned(array))
    return result


def same_bytes(first: Tensors, second: Tensors) -> bool:
    assert set(first) == set(second), set(first) ^ set(second)
    return all(
        first[name].shape == second[name].shape and first[name].tobytes() == second[name].tobytes()
        for name in first
    )


def read_all(folder: Path) -> Tensors:
    tensors = open_tensors(folder)
    return {name: tensors.read(name) for name in tensors.names()}


VARIANTS = [
    {"tie_word_embeddings": tied, "use_bias": bias} | shape
    for tied, bias in itertools.product((True, False), (True, False))
    for shape in ({}, {"head_dim": 4, "num_key_value_heads": 3}, {"intermediate_size": H})
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_every_stored_form_gives_the_same_parameters(
    tmp_path: Path, changes: dict[str, Any], dtype: str
) -> None:
    of = config(**changes)
    hf = hf_tensors(of, "<f4" if dtype == "F32" else "<u2")
    expected = paddle_tensors(hf, "model.")
    forms = {
        "hf": hf,
        "ernie": paddle_tensors(hf),
        "model": expected,
        "split": paddle_tensors(hf, fused=False),
        "split-model": paddle_tensors(hf, "model.", fused=False),
    }
    for name, tensors in forms.items():
        folder = store(tmp_path / name, tensors, dtype=dtype, limit=2000)
        loaded = list(load_weights(folder, of))
        assert [item[0] for item in loaded] == list(memory_shapes(of))
        assert {item[1] for item in loaded} == {dtype}
        assert same_bytes({item[0]: item[2] for item in loaded}, expected), name


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_every_way_between_layouts_keeps_the_bytes(tmp_path: Path, changes: dict[str, Any]) -> None:
    of = config(**changes)
    hf = hf_tensors(of)
    forms = {"hf": hf, "paddle": paddle_tensors(hf)}
    sources = forms | {"split": paddle_tensors(hf, fused=False)}
    for (name, tensors), (layout, expected) in itertools.product(sources.items(), forms.items()):
        opened = open_weights(store(tmp_path / name, tensors), of)
        items = list(opened.layout_items(layout))
        assert same_bytes({item[0]: item[2] for item in items}, expected), (name, layout)
        assert opened.layout_specs(layout) == [(n, d, a.shape) for n, d, a in items]
        saved = list(save_layout(opened.memory_items(), layout, of))
        assert [(n, d, a.tobytes()) for n, d, a in saved] == [(n, d, a.tobytes()) for n, d, a in items]
        assert layout_specs(of, layout, dict.fromkeys(memory_shapes(of), "F32")) == opened.layout_specs(
            layout
        )


def test_blocks_of_a_few_rows_give_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = config(tie_word_embeddings=False, use_bias=True)
    hf = hf_tensors(of)
    monkeypatch.setattr(weights_module, "_BLOCK_BYTES", 3 * 4 * H)
    for name, tensors in (
        ("hf", hf),
        ("paddle", paddle_tensors(hf)),
        ("split", paddle_tensors(hf, fused=False)),
    ):
        opened = open_weights(store(tmp_path / name, tensors), of)
        assert same_bytes({n: a for n, _, a in opened.layout_items("hf")}, hf)
        assert same_bytes({n: a for n, _, a in opened.layout_items("paddle")}, paddle_tensors(hf))


def test_names_of_a_whole_layer_by_hand() -> None:
    layer = [t.name for t in stored_tensors(config(), "paddle") if ".layers.1." in t.name]
    assert layer == [
        "ernie.layers.1.input_layernorm.weight",
        "ernie.layers.1.self_attn.qkv_proj.weight",
        "ernie.layers.1.self_attn.o_proj.weight",
        "ernie.layers.1.post_attention_layernorm.weight",
        "ernie.layers.1.mlp.up_gate_proj.weight",
        "ernie.layers.1.mlp.down_proj.weight",
    ]
    shapes = {t.name: t.shape for t in stored_tensors(config(tie_word_embeddings=False), "paddle")}
    assert shapes["ernie.layers.0.self_attn.qkv_proj.weight"] == (H, (HEADS + 2 * KV) * D)
    assert shapes["ernie.layers.0.mlp.up_gate_proj.weight"] == (H, 2 * INNER)
    assert shapes["lm_head.weight"] == (H, V)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("hf", "paddle")),
        ({"head_dim": 4, "num_key_value_heads": 3, "intermediate_size": H}, ("hf", "paddle")),
    ],
    ids=["some tell", "all square"],
)
def test_layout_follows_from_names_and_shapes(
    tmp_path: Path, changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    of = config(**changes)
    hf = hf_tensors(of)
    for name, tensors, layout in (
        ("hf", hf, expected[0]),
        ("fused", paddle_tensors(hf, "model."), expected[1]),
        ("split", paddle_tensors(hf, fused=False), expected[1]),
    ):
        assert detect_layout(open_tensors(store(tmp_path / name, tensors)), of) == layout


def test_one_tensor_that_is_not_square_decides(tmp_path: Path) -> None:
    of = config(head_dim=4, num_key_value_heads=3, intermediate_size=H, tie_word_embeddings=False)
    hf = hf_tensors(of)  # only lm_head is not square
    split = paddle_tensors(hf, "model.", fused=False)
    assert detect_layout(open_tensors(store(tmp_path / "hf", hf)), of) == "hf"
    assert detect_layout(open_tensors(store(tmp_path / "split", split)), of) == "paddle"


def test_mixed_layouts_are_refused(tmp_path: Path) -> None:
    hf = hf_tensors(config())
    name = "model.layers.1.mlp.down_proj.weight"
    hf[name] = np.ascontiguousarray(hf[name].T)
    with pytest.raises(CheckpointError, match=r"mixes two layouts"):
        load_weights(store(tmp_path, hf), config())


def test_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights of an ERNIE 4.5 dense model.*transformer.h.0"):
        load_weights(store(tmp_path, {"transformer.h.0.weight": np.zeros((2, 2), "<f4")}), config())


def test_all_that_is_wrong_is_listed(tmp_path: Path) -> None:
    tensors = hf_tensors(config())
    del tensors["model.norm.weight"]
    del tensors["model.layers.0.self_attn.k_proj.weight"]
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.zeros(4, "<f4")
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((INNER, H + 1), "<f4")
    with pytest.raises(CheckpointError) as caught:
        load_weights(store(tmp_path, tensors), config())
    message = str(caught.value)
    assert str(tmp_path) in message
    for part in (
        "2 missing:",
        "model.norm.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "1 of another shape:",
        f"model.layers.1.mlp.up_proj.weight is [{INNER}, {H + 1}], config.json asks for [{INNER}, {H}]",
        "1 unexpected:",
        "model.layers.1.self_attn.rotary_emb.inv_freq",
    ):
        assert part in message


def test_long_lists_are_cut(tmp_path: Path) -> None:
    tensors = hf_tensors(config())
    with pytest.raises(CheckpointError, match=r"45 missing:[^.]*model[\s\S]*and 33 more"):
        load_weights(store(tmp_path, tensors), config(num_hidden_layers=7))


@pytest.mark.parametrize(
    ("surplus", "message"),
    [
        ("model.layers.1.mlp.experts.0.up_proj.weight", "mixture-of-experts"),
        ("model.layers.1.mlp.down_proj.bias", "use_bias: true"),
        ("ernie.norm.weight", "same tensor twice"),
    ],
)
def test_hints(tmp_path: Path, surplus: str, message: str) -> None:
    tensors = hf_tensors(config()) | {surplus: np.zeros(H, "<f4")}
    with pytest.raises(CheckpointError, match=message):
        load_weights(store(tmp_path, tensors), config())


def test_untied_model_without_a_head(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="lm_head.weight[\\s\\S]*tie_word_embeddings: true"):
        load_weights(store(tmp_path, hf_tensors(config())), config(tie_word_embeddings=False))


@pytest.mark.parametrize("layout", ["hf", "paddle"])
def test_spare_head_of_a_tied_model(tmp_path: Path, layout: str) -> None:
    tensors = hf_tensors(config())
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    stored = tensors if layout == "hf" else paddle_tensors(tensors)
    names = [item[0] for item in load_weights(store(tmp_path / "equal", stored), config())]
    assert names == list(memory_shapes(config()))
    head = stored["lm_head.weight"].view(np.uint32)
    head[-1, -1] ^= 1
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        load_weights(store(tmp_path / "other", stored), config())


def test_multi_token_prediction_is_left_out(tmp_path: Path) -> None:
    tensors = hf_tensors(config()) | {"model.mtp_block.0.mlp.up_proj.weight": np.zeros((2, 2), "<f4")}
    assert len(list(load_weights(store(tmp_path, tensors), config()))) == len(memory_shapes(config()))


def test_quantised_and_mixed_types_are_refused(tmp_path: Path) -> None:
    tensors = hf_tensors(config())
    for name, dtype, kind, message in (
        ("model.layers.0.mlp.down_proj.weight", "I8", np.int8, "down_proj.weight is I8[\\s\\S]*quantised"),
        (
            "model.layers.0.self_attn.k_proj.weight",
            "BF16",
            np.uint16,
            "pieces of .*different types: F32, BF16, F32",
        ),
    ):
        items = [
            (n, "F32", a) if n != name else (n, dtype, np.zeros(a.shape, kind)) for n, a in tensors.items()
        ]
        folder = tmp_path / dtype
        folder.mkdir()
        write_tensors(folder, items, max_shard_bytes=10**9, metadata={})
        with pytest.raises(CheckpointError, match=message):
            load_weights(folder, config())


def test_a_cast_sees_every_number_once(tmp_path: Path) -> None:
    of = config(use_bias=True, tie_word_embeddings=False)
    hf = {
        name: np.arange(array.size, dtype="<f4").reshape(array.shape)
        for name, array in hf_tensors(of).items()
    }
    seen: list[int] = []

    def cast(name: str, array: np.ndarray, source: str, target: str) -> np.ndarray:
        assert (source, target) == ("F32", "F16")
        seen.append(array.size)
        return array.astype("<f2")

    opened = open_weights(store(tmp_path, hf), of)
    result = {name: array for name, dtype, array in opened.layout_items("paddle", dtype="F16", cast=cast)}
    assert sum(seen) == sum(array.size for array in hf.values())
    expected = paddle_tensors({name: array.astype("<f2") for name, array in hf.items()})
    assert same_bytes(result, expected)
    assert {spec[1] for spec in opened.layout_specs("paddle", dtype="F16")} == {"F16"}
