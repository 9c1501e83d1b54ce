"""What every scheme promises, over a dense model and a mixture of experts: the contract of schemes."""

import subprocess
import sys
from functools import cache

import numpy as np
import paddle
import pytest

from erniekit.adapters import lora
from erniekit.adapters.dora import DoraLinear
from erniekit.adapters.layers import LoraLinear
from erniekit.errors import ConfigError, UnsupportedError
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.weights import memory_shapes
from erniekit.ops import gradients
from erniekit.ops.quantised import QuantisedMatrix
from erniekit.quant import weight_only
from erniekit.quant.schemes import FORMATS, SCHEMES, WHILE_READ, formats_of, weight_bytes
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config, write_tiny_checkpoint
from tests.adapters import models

CONFIGS = {
    "dense": lambda: tiny_config(use_bias=True),
    "experts": lambda: tiny_moe_config(moe_num_shared_experts=1),
}
TYPES = {"fp32": "float32", "bf16": "bfloat16"}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest):
    return CONFIGS[request.param]()


# What does not ask in which numbers matrices are, with formats that differ by part and one that does not.
WHATEVER_THE_NUMBERS = pytest.mark.parametrize("scheme", ["nf4", "wint4/8"])


@pytest.fixture(params=WHILE_READ)
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


def quantised(config, scheme, *, dtype="fp32"):
    """The model of `models.build` with its weights quantised as a checkpoint's are while they are read."""
    source = models.build(config)
    with paddle.LazyGuard():
        model = type(source)(config, dtype=dtype)
    items = [(name, "F32", parameter.numpy()) for name, parameter in source.named_parameters()]
    parameters = None
    for name, _, raw in weight_only.apply(model, plan.ROLES, scheme, items, dtype=TYPES[dtype]):
        parameters = parameters or dict(model.named_parameters())
        parameters[name].set_value(paddle.to_tensor(raw).astype(parameters[name].dtype))
    model.eval()
    return model


unchanged = cache(quantised)  # for tests that leave the model as it is


def plain(model, config, *, dtype="fp32"):
    """A model with the numbers that a quantised one makes, in full."""
    full = models.build(config, dtype=dtype)
    given = dict(model.named_parameters())
    matrices = weight_only.quantised_matrices(model)
    for name, parameter in full.named_parameters():
        if name not in matrices:
            parameter.set_value(given[name])
            continue
        matrix = matrices[name]
        experts = range(matrix.shape[0]) if len(matrix.shape) == 3 else [None]
        numbers = [matrix.numbers(expert) for expert in experts]
        parameter.set_value(numbers[0] if len(matrix.shape) == 2 else paddle.stack(numbers))
    return full


def test_exactly_the_parts_of_the_scheme_are_quantised(config, scheme):
    model = unchanged(config, scheme)
    matrices = weight_only.quantised_matrices(model)
    expected = set(formats_of(memory_shapes(config), plan.ROLES, scheme))
    assert set(matrices) == expected and len(expected) >= 8
    assert not expected & {name for name, _ in model.named_parameters()}
    left = sum(4 * parameter.size for parameter in model.parameters())
    total = left + sum(matrix.num_bytes for matrix in matrices.values())
    assert total == weight_bytes(memory_shapes(config), plan.ROLES, scheme, 4)


@pytest.mark.parametrize("dtype", TYPES)
def test_it_computes_what_the_numbers_made_do(config, scheme, dtype):
    model = unchanged(config, scheme) if dtype == "fp32" else quantised(config, scheme, dtype=dtype)
    expected = models.logits(plain(model, config, dtype=dtype))
    models.near(models.logits(model), expected, 2e-5 if dtype == "fp32" else 2e-2)


def test_it_is_near_the_model(config, scheme):
    """Eight bits change little, four more than eight, and two much."""
    full = models.logits(models.build(config))
    difference = np.abs(models.logits(unchanged(config, scheme)) - full).max() / np.abs(full).max()
    assert 0 < difference < {"wint8": 0.05}.get(scheme, 1.0 if "2" in scheme else 0.6)


@pytest.mark.parametrize("method", [LoraLinear, DoraLinear])
def test_adapters_get_the_gradients_of_the_numbers_made(config, scheme, method):
    target = ("all-linear", "experts") if method is LoraLinear else ()
    if method is DoraLinear and "moe_num_experts" in vars(config):
        target = ("qkv_proj", "shared_experts.down_proj")
    if "moe_num_experts" not in vars(config):
        target = ()
    found = []
    model = quantised(config, scheme)
    for each in (model, plain(model, config)):
        paddle.seed(3)
        applied = models.apply(each, method, lora_target=target)
        models.disturb(applied)
        each.train()
        models.logits(each, grad=True).square().mean().backward()
        parameters = dict(each.named_parameters())
        found.append({name: gradients.of(parameters[name]).numpy() for name in applied.names()})
    assert set(found[0]) == set(found[1]) and len(found[0]) >= 4
    for name, gradient in found[0].items():
        models.near(gradient, found[1][name], 5e-5)


@WHATEVER_THE_NUMBERS
def test_the_files_name_the_same_modules(config, scheme):
    """peft is told the short names where all of a kind are adapted, quantised or not."""
    from erniekit.adapters.state import target_names

    model = quantised(config, scheme)
    full = plain(model, config)
    assert target_names(models.apply(model)) == target_names(models.apply(full))


@WHATEVER_THE_NUMBERS
def test_adapters_off_and_detached(config, scheme):
    model = quantised(config, scheme)
    before = models.logits(model)
    applied = models.apply(model)
    models.disturb(applied)
    assert np.abs(models.logits(model) - before).max() > 1e-3
    with lora.adapters_off(model):
        models.near(models.logits(model), before, 1e-6)
    with pytest.raises(UnsupportedError, match="erniekit export merges it into the model as it is"):
        lora.merge(applied)
    lora.detach(applied)
    models.near(models.logits(model), before, 1e-6)


@WHATEVER_THE_NUMBERS
def test_a_quantised_weight_is_not_trained_whole(config, scheme):
    with pytest.raises(ConfigError, match="'o_proj' would train .*o_proj.weight, which compute_type keeps"):
        models.apply(quantised(config, scheme), lora_modules_to_save=("o_proj",))
    model = quantised(config, scheme)
    assert models.apply(model, lora_modules_to_save=("embed_tokens",)).saved == ("model.embed_tokens.weight",)


def test_a_source_in_bf16_is_quantised_from_its_bits(scheme):
    raw = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    bits = (raw.view(np.uint32) >> 16).astype(np.uint16)
    wide = (bits.astype(np.uint32) << 16).view(np.float32)
    chosen = FORMATS[SCHEMES[scheme].weights["experts"]]
    one, other = (QuantisedMatrix.of(x, chosen.number, chosen.group, "float32") for x in (bits, wide))
    np.testing.assert_array_equal(one.numbers().numpy(), other.numbers().numpy())


@WHATEVER_THE_NUMBERS
def test_a_matrix_that_never_came_is_noticed(config, scheme):
    model = models.build(config)
    items = [("model.norm.weight", "F32", np.ones(32, np.float32))]
    with pytest.raises(AssertionError, match="without a source"):
        list(weight_only.apply(model, plan.ROLES, scheme, items, dtype="float32"))


_LOAD = """
import sys
from pathlib import Path
import paddle
from erniekit.assemble import load_for_inference
from erniekit.quant.weight_only import quantised_matrices

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

warm, folder, scheme = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
load_for_inference(warm, compute_type="fp32", scheme=scheme)
before = memory("VmRSS")
model = load_for_inference(folder, compute_type="fp32", scheme=scheme).model
kept = sum(4 * p.size for p in model.parameters())
kept += sum(matrix.num_bytes for matrix in quantised_matrices(model).values())
print(kept, memory("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_the_quantised_model_and_little_more(tmp_path):
    """Not the model in full, which is 96 MB here: one weight at a time, the largest of 6 MB."""
    config = tiny_config(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, head_dim=64
    )
    folders = [write_tiny_checkpoint(tmp_path / "warm"), write_tiny_checkpoint(tmp_path / "model", config)]
    full = 4 * config.num_parameters()
    words = [sys.executable, "-c", _LOAD, *map(str, folders), "nf4"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    kept, taken = map(int, done.stdout.split())
    assert full > 90e6 and kept < full / 3
    assert taken < kept + 25e6 < full - 35e6
