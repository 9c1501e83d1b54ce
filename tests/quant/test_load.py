"""The contract of schemes in folders: what was quantised is what is loaded, for every row of the table."""

import json
import shutil

import numpy as np
import paddle
import pytest

from erniekit.assemble import Adaptation, build_model, load_for_inference
from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.config.quantize import SCHEME_WORDS
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.models.ernie45.weights import memory_shapes
from erniekit.ops.rounding import KVRounding
from erniekit.quant.schemes import SCHEMES, formats_of
from erniekit.quant.weight_only import quantised_matrices
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.adapters import models
from tests.quant.folders import quantised_folder

CONFIGS = {
    "dense": lambda: tiny_config(use_bias=True),
    "experts": lambda: tiny_moe_config(moe_num_shared_experts=1),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(source, quantised folder) by kind and scheme, rounded to nearest."""
    made = {}

    def folder(kind, scheme):
        if (kind, scheme) not in made:
            place = tmp_path_factory.mktemp("quantised")
            source, done = quantised_folder(place, CONFIGS[kind](), quant_scheme=scheme, quant_method="rtn")
            made[kind, scheme] = (source, done.folder)
        return made[kind, scheme]

    return folder


def test_the_words_of_the_key_are_the_rows():
    assert set(SCHEME_WORDS) == set(SCHEMES) - {"bf16"}


@pytest.mark.parametrize("scheme", SCHEME_WORDS)
@pytest.mark.parametrize("kind", CONFIGS)
def test_it_computes_what_its_numbers_do(folders, kind, scheme):
    """Against the model in full with the numbers in it, whose layers round their inputs by our own hooks."""
    source, folder = folders(kind, scheme)
    built = load_for_inference(folder, compute_type="fp32")
    full = load_for_inference(source, compute_type="fp32").model
    assert built.scheme == scheme and built.config.num_parameters() == built.num_parameters
    matrices = quantised_matrices(built.model)
    assert set(matrices) == set(formats_of(memory_shapes(built.config), _roles(), scheme))
    layers = dict(full.named_sublayers())
    for name, matrix in matrices.items():
        experts = range(matrix.shape[0]) if len(matrix.shape) == 3 else [None]
        numbers = [matrix.numbers(expert) for expert in experts]
        layer = layers[name.removesuffix(".weight")]
        layer.weight.set_value(numbers[0] if len(matrix.shape) == 2 else paddle.stack(numbers))
        layer.register_forward_pre_hook(_prepare(matrix))
    for name, layer in built.model.named_sublayers():
        if isinstance(getattr(layer, "kv_rounding", None), KVRounding):
            layers[name].kv_rounding = layer.kv_rounding
    rounded = SCHEMES[scheme].kv_cache is not None or not SCHEMES[scheme].is_weight_only
    found, expected = models.logits(built.model), models.logits(full)
    if rounded:  # a product's last bit may move an input to the next number
        assert np.square(found - expected).mean() < 1e-4 * np.square(expected).mean()
    else:
        models.near(found, expected, 2e-5)


def _roles():
    from erniekit.models.ernie45 import plan

    return plan.ROLES


def _prepare(matrix):
    from erniekit.ops.quantised import prepared

    def hook(layer, given):
        x, *offsets = given
        rows = prepared(x.reshape([-1, x.shape[-1]]), matrix, *offsets)
        return (rows.reshape(x.shape), *offsets)

    return hook


@pytest.mark.parametrize("scheme", ["w4a8c8"])
def test_keys_and_values_are_rounded_in_the_cache_too(folders, scheme):
    from erniekit.generate.engine import generate
    from erniekit.generate.sampler import Sampling

    _, folder = folders("dense", scheme)
    model = load_for_inference(folder, compute_type="fp32").model
    assert sum(isinstance(getattr(x, "kv_rounding", None), KVRounding) for x in model.sublayers()) == 2
    prompt = [5, 80, 91, 200, 17]
    sampling = Sampling(max_new_tokens=6, temperature=0.0)
    answer = [
        event.token_id for event in generate(model, [prompt], sampling=sampling, end_ids=[], max_context=64)
    ]
    for _ in range(6):  # one whole pass for every token, without a cache
        ids = np.array([prompt], np.int64)
        hidden = model(
            paddle.to_tensor(ids),
            paddle.to_tensor(np.arange(len(prompt))[None]),
            paddle.zeros([1, len(prompt)], dtype="int32"),
        )
        prompt = [*prompt, int(model.logits(hidden[0, -1:]).argmax())]
    assert answer == prompt[5:]


def test_schemes_do_not_mix(folders):
    _, folder = folders("dense", "wint8")
    with pytest.raises(ConfigError, match="is quantised already, as wint8; write compute_type: auto"):
        load_for_inference(folder, compute_type="nf4")


KEYS = {"compute_type": "fp32", "fine_tuning": "LoRA", "continue_training": True, "freeze": ()}
KEYS |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_adapters_over_rounded_inputs_are_refused(folders):
    _, folder = folders("dense", "w8a8")
    with pytest.raises(UnsupportedError, match="an adapter over w8a8, which rounds the inputs"):
        build_model(folder, Adaptation({}), **KEYS)


@pytest.mark.parametrize("scheme", ["wint4", "wint2"])
def test_adapters_over_weights_alone(folders, scheme):
    _, folder = folders("dense", scheme)
    lora = {
        "lora_rank": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "lora_target": (),
        "lora_modules_to_save": (),
    }
    lora |= {"rslora": False, "lora_plus_scale": 1.0, "rslora_plus": False}
    built = build_model(folder, Adaptation(lora), **KEYS)
    assert 0 < built.num_trained < built.num_parameters / 5 and built.fingerprint.startswith("sha256:")
    before = models.logits(load_for_inference(folder, compute_type="fp32").model)
    built.model.eval()
    models.near(models.logits(built.model), before, 1e-6)


@pytest.mark.parametrize("method", ["Full", "PiSSA"])
def test_few_bits_are_not_trained_whole(folders, method):
    _, folder = folders("dense", "wint4")
    with pytest.raises(ConfigError, match=f"fine_tuning: {method}: the weights of .* are in wint4"):
        build_model(folder, Adaptation({}), **{**KEYS, "fine_tuning": method})


def test_who_needs_the_model_in_full_says_so(folders, tmp_path):
    from erniekit.export.convert import convert_model

    _, folder = folders("dense", "wint4")
    with pytest.raises(CheckpointError, match="These weights are quantised"):
        convert_model(folder, tmp_path / "x", layout="hf")


def test_a_tensor_that_is_missing_is_named(folders, tmp_path):
    _, folder = folders("dense", "wint8")
    broken = shutil.copytree(folder, tmp_path / "broken")
    tensors = open_tensors(folder)
    gone = "ernie.layers.1.self_attn.o_proj.weight_scale"
    items = [item for item in tensors.items() if item[0] != gone]
    write_tensors(broken, items, max_shard_bytes=1 << 30, metadata={})
    with pytest.raises(CheckpointError, match=f"do not fit config.json\n  {gone} is missing"):
        load_for_inference(broken, compute_type="fp32")


def test_the_fields_of_the_folder(folders):
    _, folder = folders("experts", "w4a8c8")
    found = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert found["moe_quant_type"] == "w4a8" and found["kv_cache_quant_type"] == "int8"
    names = open_tensors(folder).names()
    assert "ernie.layers.2.mlp.experts.3.down_proj.activation_scale" in names
    assert "ernie.layers.0.self_attn.cachek_matmul.activation_scale" in names
