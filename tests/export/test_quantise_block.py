"""One block: scaling leaves the model as it was, and every expert sees enough."""

import numpy as np
import pytest

from erniekit.assemble import load_for_inference
from erniekit.errors import DataError
from erniekit.export.calibration import arrays_of
from erniekit.export.quantise_block import ExpertWatch, Method, _Scaling, block_items, quantise_block
from erniekit.export.stream import BlockStream
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.weights import memory_shapes, open_weights
from erniekit.quant.folder import Quantisation
from erniekit.quant.schemes import FORMATS, formats_of
from erniekit.quant.statistics import InputWatch
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config, write_tiny_checkpoint
from tests.export.batches import batches

CONFIGS = {
    "dense": lambda: tiny_config(use_bias=True),
    "experts": lambda: tiny_moe_config(moe_num_shared_experts=1, use_bias=True),
}
KEYS = {
    **{"quant_scheme": "wint4", "quant_method": "rtn", "clip_search": True, "smooth_alpha": None},
    **{"rotation_block_size": None, "gptq_damping": 0.01, "gptq_block_size": 128, "gptq_act_order": True},
    **{"num_calibration_tokens": 100, "min_tokens_per_expert": 0, "target_bits": None},
    **{"max_quality_drop": None, "quant_layout": "fastdeploy", "quant_dir": None},
}


def opened(folder, config):
    write_tiny_checkpoint(folder, config)
    inputs = [arrays_of(batch) for batch in batches()]
    stream = BlockStream(config, open_weights(folder, config), inputs, compute_dtype="fp32")
    stream.start()
    return stream


def quantisation(config, scheme="wint4"):
    rows = {id(row): name for name, row in FORMATS.items()}
    found = formats_of(memory_shapes(config), plan.ROLES, scheme)
    return Quantisation(scheme, {name: rows[id(row)] for name, row in found.items()})


@pytest.mark.parametrize("changes", [{"smooth_alpha": 0.6}, {"quant_method": "awq"}])
@pytest.mark.parametrize("kind", CONFIGS)
def test_scaling_does_not_change_the_model(tmp_path, kind, changes):
    """Weights after scaling, in full, give the hidden states of those before; routers are scaled along."""
    config = CONFIGS[kind]()
    stream = opened(tmp_path / "model", config)
    expected = load_for_inference(tmp_path / "model", compute_type="fp32").model
    method = Method(**{**KEYS, **changes})
    changed = 0
    for index in range(stream.num_blocks):
        stream.fill(index)
        layers = stream.matrices(index)
        with InputWatch(layers) as watch:
            stream.run(index, keep=False)
        inputs = {name: watch.inputs(name) for name in layers}
        parameters = {
            name: parameter
            for name, parameter in stream.model.named_parameters()
            if name.startswith(stream.prefix(index))
        }
        arrays = {name: parameter.numpy() for name, parameter in parameters.items()}
        weights = {name: arrays[name].copy() for name in layers}
        others = {name: array.copy() for name, array in arrays.items() if name not in layers}
        _Scaling(stream, index, quantisation(config), method).apply(weights, others, inputs)
        for name, array in {**weights, **others}.items():
            changed += not np.allclose(array, arrays[name], rtol=1e-3)
            parameters[name].set_value(array)
        with InputWatch(layers) as watch:
            stream.run(index, keep=False)
        for name in layers:  # what was computed of the inputs is what they are now
            for one, other in zip(inputs[name], watch.inputs(name), strict=True):
                np.testing.assert_allclose(one.moment, other.moment, rtol=2e-3, atol=1e-3)
                np.testing.assert_allclose(one.largest, other.largest, rtol=1e-3, atol=1e-4)
        stream.run(index)
        stream.drop(index)
    assert changed >= 4 * stream.num_blocks
    from erniekit.export.quality import hidden_states

    for found, other in zip(stream.finish(), hidden_states(expected, batches()), strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-3, atol=1e-3)


def test_experts_with_few_tokens_get_those_their_router_scores_highest(tmp_path):
    config = CONFIGS["experts"]()
    stream = opened(tmp_path / "model", config)
    stream.fill(0)
    stream.run(0)
    stream.fill(1)
    layers = stream.matrices(1)
    with InputWatch(layers) as watch:
        experts = ExpertWatch(stream, 1)
        stream.run(1, keep=False)
        experts.close()
    inputs = {name: watch.inputs(name) for name in layers}
    weights = {name: layer.weight.numpy() for name, layer in layers.items()}
    up, down = (f"model.layers.1.mlp.experts.{end}.weight" for end in ("up_gate_proj", "down_proj"))
    before = [each.count for each in inputs[up]]
    assert sum(before) == 2 * 96
    least = sorted(before)[1] + 1
    rare = experts.fill_up(inputs, weights, least)
    assert rare == {
        f"model.layers.1.mlp.experts.{expert}": count for expert, count in enumerate(before) if count < least
    }
    assert len(rare) >= 2
    rows = np.concatenate(experts._rows)
    for expert, count in enumerate(before):
        expected = count + least if count < least else count
        assert inputs[up][expert].count == inputs[down][expert].count == expected
        if count < least:
            scores = rows @ stream.layer(1, "mlp").gate.matrix(0).numpy()[:, expert]
            added = rows[np.sort(np.argsort(-scores)[:least])]
            gate, other = np.split(added @ weights[up][expert], 2, axis=-1)
            inner = gate / (1 + np.exp(-gate)) * other
            kept = watch.inputs(down)[expert].moment
            np.testing.assert_allclose(
                inputs[down][expert].moment, kept + inner.T @ inner, rtol=1e-3, atol=1e-4
            )


def test_an_expert_without_tokens_has_no_scale_for_its_inputs(tmp_path):
    config = tiny_moe_config(2, moe_num_shared_experts=1)  # vision experts see no text
    stream = opened(tmp_path / "model", config)
    stream.fill(0)
    stream.run(0)
    stream.fill(1)
    with pytest.raises(DataError, match=r"vision_experts.up_gate_proj.weight: no token .* reached expert 0"):
        quantise_block(stream, 1, quantisation(config, "w4a8"), Method(**KEYS))
    result = quantise_block(stream, 1, quantisation(config, "wint4"), Method(**KEYS))
    names = [name for name, _, _ in block_items(stream, 1, result)]
    assert "ernie.layers.1.mlp.experts.7.down_proj.quant_weight" in names  # 4 of text, 4 of vision
    assert "ernie.layers.1.mlp.gate.weight_1" in names and len(names) == len(set(names))


def test_a_method_in_words():
    words = Method(
        **{**KEYS, "quant_method": "gptq", "smooth_alpha": 0.5, "rotation_block_size": 64}
    ).in_words()
    assert words == "gptq, with clipping, smoothed by 0.5, rotated in blocks of 64"
