"""Layouts of mixtures of experts: every form they are stored in, written out by hand; bytes that survive."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError
from erniekit.models.ernie45.layouts import memory_shapes, stored_tensors
from erniekit.models.ernie45.moe_config import Ernie45MoeConfig
from erniekit.models.ernie45.weights import (
    detect_layout,
    layout_specs,
    load_weights,
    open_weights,
    parts_in_files,
    save_layout,
    stored_by_parameter,
)

V, H, INNER, WIDTH, VISION_WIDTH, E, D = 50, 12, 20, 10, 6, 3, 8
Tensors = dict[str, np.ndarray]


def config(modalities: int = 1, **changes: Any) -> Ernie45MoeConfig:
    numbers: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": H,
        "intermediate_size": INNER,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "head_dim": D,
        "moe_num_experts": (E, E)[:modalities],
        "moe_intermediate_size": (WIDTH, VISION_WIDTH)[:modalities],
        "moe_k": 2,
        "num_nextn_predict_layers": 1,
    }
    return Ernie45MoeConfig(**(numbers | changes))


def hf_tensors(of: Ernie45MoeConfig) -> Tensors:
    """A model as transformers stores it: layer 0 dense, layer 1 experts, one block ahead."""
    vision = len(of.moe_num_experts) == 2
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (V, H),
        "model.norm.weight": (H,),
        "model.mtp_emb_norm.0.weight": (H,),
        "model.mtp_hidden_norm.0.weight": (H,),
        "model.mtp_linear_proj.0.weight": (H, 2 * H),
    }

    def add_mlp(prefix: str, inner: int) -> None:
        shapes[f"{prefix}.gate_proj.weight"] = (inner, H)
        shapes[f"{prefix}.up_proj.weight"] = (inner, H)
        shapes[f"{prefix}.down_proj.weight"] = (H, inner)

    for block in ("model.layers.0", "model.layers.1", "model.mtp_block.0"):
        shapes[f"{block}.input_layernorm.weight"] = (H,)
        shapes[f"{block}.post_attention_layernorm.weight"] = (H,)
        shapes[f"{block}.self_attn.q_proj.weight"] = (3 * D, H)
        shapes[f"{block}.self_attn.k_proj.weight"] = (D, H)
        shapes[f"{block}.self_attn.v_proj.weight"] = (D, H)
        shapes[f"{block}.self_attn.o_proj.weight"] = (H, 3 * D)
        if block != "model.layers.1":
            add_mlp(f"{block}.mlp", INNER)
    mlp = "model.layers.1.mlp"
    shapes[f"{mlp}.gate.weight"] = (H, E) if vision else (E, H)
    shapes[f"{mlp}.moe_statics.e_score_correction_bias"] = (2, E) if vision else (1, E)
    for expert in range(E):
        add_mlp(f"{mlp}.experts.{expert}", WIDTH)
    if vision:
        shapes[f"{mlp}.gate.weight_1"] = (H, E)
        for expert in range(E, 2 * E):
            add_mlp(f"{mlp}.experts.{expert}", VISION_WIDTH)
    add_mlp(f"{mlp}.shared_experts", 2 * WIDTH)
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype("<f4") for name, shape in shapes.items()}


def paddle_tensors(hf: Tensors, prefix: str = "ernie.") -> Tensors:
    """The same model as Paddle stores it."""
    vision = any(name.endswith("weight_1") for name in hf)
    result: Tensors = {}
    for name, array in hf.items():
        new = prefix + name.removeprefix("model.")
        if ".q_proj." in name:
            parts = [hf[name.replace("q_proj", piece)].T for piece in ("q_proj", "k_proj", "v_proj")]
            result[new.replace("q_proj", "qkv_proj")] = np.concatenate(parts, axis=1)
        elif ".gate_proj." in name:
            parts = [array.T, hf[name.replace("gate_proj", "up_proj")].T]
            result[new.replace("gate_proj", "up_gate_proj")] = np.concatenate(parts, axis=1)
        elif any(word in name for word in (".k_proj.", ".v_proj.", ".up_proj.")):
            continue
        elif "embed" in name or "bias" in name or (vision and ".gate." in name):
            result[new] = array
        else:
            result[new] = np.ascontiguousarray(array.T)
    return {name: np.ascontiguousarray(array) for name, array in result.items()}


def stacked_tensors(hf: Tensors) -> Tensors:
    """As transformers 5 keeps a text model in memory."""
    kept = {
        name: array for name, array in hf.items() if ".experts." not in name and "moe_statics" not in name
    }
    mlp = "model.layers.1.mlp"
    kept[f"{mlp}.gate.moe_statics.e_score_correction_bias"] = hf[f"{mlp}.moe_statics.e_score_correction_bias"]
    of = [{p: hf[f"{mlp}.experts.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")} for e in range(E)]
    kept[f"{mlp}.experts.gate_up_proj"] = np.stack([np.concatenate([x["gate"], x["up"]]) for x in of])
    kept[f"{mlp}.experts.down_proj"] = np.stack([x["down"] for x in of])
    return kept


def store(folder: Path, tensors: Tensors, dtypes: dict[str, str] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    items = [(name, (dtypes or {}).get(name, "F32"), array) for name, array in tensors.items()]
    write_tensors(folder, items, max_shard_bytes=3000, metadata={"format": "pt"})
    return folder


def forms(of: Ernie45MoeConfig) -> dict[str, Tensors]:
    hf = hf_tensors(of)
    found = {"hf": hf, "paddle": paddle_tensors(hf), "model": paddle_tensors(hf, "model.")}
    return found | ({"stacked": stacked_tensors(hf)} if len(of.moe_num_experts) == 1 else {})


def same_bytes(first: Tensors, second: Tensors) -> bool:
    assert set(first) == set(second), set(first) ^ set(second)
    return all(a.shape == second[n].shape and a.tobytes() == second[n].tobytes() for n, a in first.items())


@pytest.mark.parametrize("modalities", [1, 2])
def test_every_stored_form_gives_the_same_parameters(tmp_path: Path, modalities: int) -> None:
    of = config(modalities)
    hf = hf_tensors(of)
    for name, tensors in forms(of).items():
        folder = store(tmp_path / name, tensors)
        expected_layout = "paddle" if name in ("paddle", "model") else "hf"
        assert detect_layout(open_tensors(folder), of) == expected_layout
        loaded = {n: a for n, _, a in load_weights(folder, of)}
        assert {n: a.shape for n, a in loaded.items()} == memory_shapes(of)
        mlp = "model.layers.1.mlp"
        for expert, prefix in itertools.product(range(E), ("experts", "vision_experts")[:modalities]):
            stored = f"{mlp}.experts.{expert + (E if prefix == 'vision_experts' else 0)}"
            gate, up = hf[f"{stored}.gate_proj.weight"].T, hf[f"{stored}.up_proj.weight"].T
            matrices = loaded[f"{mlp}.{prefix}.up_gate_proj.weight"]
            np.testing.assert_array_equal(matrices[expert], np.concatenate([gate, up], axis=1))
            down = loaded[f"{mlp}.{prefix}.down_proj.weight"][expert]
            np.testing.assert_array_equal(down, hf[f"{stored}.down_proj.weight"].T)
        router = hf[f"{mlp}.gate.weight"]
        np.testing.assert_array_equal(loaded[f"{mlp}.gate.weight"], router if modalities == 2 else router.T)
        projection = loaded["model.mtp_linear_proj.0.weight"]
        np.testing.assert_array_equal(projection, hf["model.mtp_linear_proj.0.weight"].T)


@pytest.mark.parametrize("modalities", [1, 2])
def test_every_way_between_layouts_keeps_the_bytes(tmp_path: Path, modalities: int) -> None:
    of = config(modalities)
    sources = forms(of)
    for (name, tensors), layout in itertools.product(sources.items(), ("hf", "paddle")):
        opened = open_weights(store(tmp_path / name, tensors), of)
        items = list(opened.layout_items(layout))
        assert same_bytes({item[0]: item[2] for item in items}, sources[layout]), (name, layout)
        assert opened.layout_specs(layout) == [(n, d, a.shape) for n, d, a in items]
        saved = list(save_layout(opened.memory_items(), layout, of))
        assert [(n, d, a.tobytes()) for n, d, a in saved] == [(n, d, a.tobytes()) for n, d, a in items]
        assert layout_specs(of, layout, dict.fromkeys(memory_shapes(of), "F32")) == opened.layout_specs(
            layout
        )


def test_routers_stay_fp32_whatever_is_asked_for(tmp_path: Path) -> None:
    of = config()

    def cast(name: str, array: np.ndarray, source: str, target: str) -> np.ndarray:
        assert (source, target) == ("F32", "F16")
        return array.astype("<f2")

    for name, tensors in forms(of).items():
        opened = open_weights(store(tmp_path / name, tensors), of)
        items = {n: (d, a) for n, d, a in opened.layout_items("hf", dtype="F16", cast=cast)}
        wide = {n for n, (d, _) in items.items() if d == "F32"}
        assert wide == {
            "model.layers.1.mlp.gate.weight",
            "model.layers.1.mlp.moe_statics.e_score_correction_bias",
        }
        halves = {n: a if n in wide else a.astype("<f2") for n, a in hf_tensors(of).items()}
        assert same_bytes({n: a for n, (_, a) in items.items()}, halves), name
        assert {n: d for n, d, _ in opened.layout_specs("hf", dtype="F16")} == {
            n: d for n, (d, _) in items.items()
        }


def test_fp32_routers_beside_bf16_weights(tmp_path: Path) -> None:
    of = config()
    tensors = hf_tensors(of)
    kept = [name for name in tensors if ".gate.weight" in name or "bias" in name]
    narrow = {n: a if n in kept else a.view("<u2")[..., 1::2].copy() for n, a in tensors.items()}
    dtypes = {name: "F32" if name in kept else "BF16" for name in tensors}
    opened = open_weights(store(tmp_path, narrow, dtypes), of)
    found = {name: dtype for name, dtype, _ in opened.memory_items()}
    assert {name for name, dtype in found.items() if dtype == "F32"} == set(kept)
    assert same_bytes({n: a for n, _, a in opened.layout_items("hf")}, narrow)


def test_names_and_shapes_of_the_released_multimodal_layout() -> None:
    of = config(2, moe_num_shared_experts=0)
    shapes = {t.name: t.shape for t in stored_tensors(of, "paddle") if ".layers.1.mlp." in t.name}
    mlp = "ernie.layers.1.mlp"
    assert shapes[f"{mlp}.gate.weight"] == shapes[f"{mlp}.gate.weight_1"] == (H, E)
    assert shapes[f"{mlp}.moe_statics.e_score_correction_bias"] == (2, E)
    assert shapes[f"{mlp}.experts.2.up_gate_proj.weight"] == (H, 2 * WIDTH)
    assert shapes[f"{mlp}.experts.3.up_gate_proj.weight"] == (H, 2 * VISION_WIDTH)
    assert shapes[f"{mlp}.experts.5.down_proj.weight"] == (VISION_WIDTH, H)
    assert len(shapes) == 3 + 2 * 2 * E


def test_the_vision_tower_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tower = {
        "vision_model.ln.weight": np.zeros(4, "<f4"),
        "model.resampler_model.mlp.weight": np.zeros(4, "<f4"),
    }
    with caplog.at_level("WARNING", logger="erniekit"):
        opened = open_weights(store(tmp_path / "two", hf_tensors(config(2)) | tower), config(2))
    assert set(opened.sources) == set(memory_shapes(config(2)))
    with pytest.raises(CheckpointError, match="2 unexpected"):
        open_weights(store(tmp_path / "one", hf_tensors(config()) | tower), config())


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("mtp", "If the model has no multi-token prediction, write num_nextn_predict_layers: 0"),
        ("experts|gate.weight|statics", "there are no experts among the tensors"),
        ("experts.1.down", "1 missing:[\\s\\S]*experts.1.down_proj"),
        ("statics", "1 missing:[\\s\\S]*e_score_correction_bias"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, left_out: str, message: str) -> None:
    words = left_out.split("|")
    tensors = {n: a for n, a in hf_tensors(config()).items() if not any(word in n for word in words)}
    with pytest.raises(CheckpointError, match=message):
        open_weights(store(tmp_path, tensors), config())


def test_blocks_ahead_that_the_configuration_does_not_name_are_left_out(tmp_path: Path) -> None:
    of = config(num_nextn_predict_layers=0)
    opened = open_weights(store(tmp_path, hf_tensors(config())), of)
    assert not any("mtp" in parameter for parameter in opened.sources)


@pytest.mark.parametrize("layout", ["hf", "paddle"])
def test_blocks_of_parameters_lie_where_the_whole_ones_do(layout: str) -> None:
    of = config(2, use_bias=True)
    rng = np.random.default_rng(0)
    memory = {name: rng.normal(size=shape) for name, shape in memory_shapes(of).items()}
    written = {
        name: array for name, _, array in save_layout(((n, "F64", a) for n, a in memory.items()), layout, of)
    }
    again = {name: np.zeros_like(array) for name, array in written.items()}
    targets = stored_by_parameter(of, layout)
    for name, array in memory.items():
        cuts = [sorted({0, size, *rng.integers(0, size + 1, 2).tolist()}) for size in array.shape]
        for corners in itertools.product(*(itertools.pairwise(cut) for cut in cuts)):
            block = array[tuple(slice(*corner) for corner in corners)]
            for stored, start, part in parts_in_files(tuple(c[0] for c in corners), block, targets[name]):
                window = tuple(slice(s, s + n) for s, n in zip(start, part.shape, strict=True))
                assert not again[stored][window].any(), f"{stored} twice"
                again[stored][window] = part
    assert all((written[name] == again[name]).all() for name in written)
