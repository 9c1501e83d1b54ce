"""Which models are decoded natively, and that their answers are those of the plain way."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
import pytest

from erniekit.generate.engine import CachedDecoder, generate
from erniekit.generate.native import decoder_table, native_steps
from erniekit.generate.sampler import Sampling
from erniekit.models.ernie45.config import Ernie45Config
from erniekit.models.ernie45.model import Ernie45
from erniekit.models.ernie45.plan import ROLES
from erniekit.nn.linear import Linear
from erniekit.ops import backend
from erniekit.ops.kernels.library import find_library
from erniekit.ops.native.decode import CodedHead
from erniekit.ops.rounding import KVRounding, Rounding
from erniekit.quant import weight_only

if find_library().library is None:
    pytest.skip("native kernels do not run here", allow_module_level=True)
PROMPTS = [[5, 9, 3, 30, 12], [7], [40, 41, 42]]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Native kernels, whatever the environment says."""
    monkeypatch.setattr(backend, "_backend", "native")
    yield


def build(dtype: str = "fp32", **changes: Any) -> Ernie45:
    paddle.seed(3)
    numbers: dict[str, Any] = {
        **{"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64},
    }
    model = Ernie45(Ernie45Config(**{**numbers, **changes}), dtype=dtype)
    for name, parameter in model.named_parameters():
        mean = 1.0 if len(parameter.shape) == 1 and not name.endswith("bias") else 0.0
        parameter.set_value(paddle.normal(mean, 0.3, parameter.shape).astype(parameter.dtype))
    model.eval()
    return model


def logits(model: Ernie45, *, native_way: bool) -> tuple[np.ndarray, np.ndarray]:
    """After the prompts, and after three more tokens of which the second row misses one."""
    decoder = CachedDecoder(model, PROMPTS, num_columns=9)
    assert decoder._native is not None
    if not native_way:
        decoder._native = None
    first = decoder.prefill().copy()
    decoder.step([1, 2, 3], [0, 1, 2])
    decoder.step([4, 5], [0, 2])
    return first, decoder.step([6, 7], [0, 2]).copy()


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [
        ({}, "fp32"),
        ({"tie_word_embeddings": False, "use_bias": True}, "fp32"),
        ({"num_key_value_heads": 4, "head_dim": 6}, "fp32"),
        ({}, "bf16"),
    ],
)
def test_logits_are_those_of_the_plain_way(changes: dict[str, Any], dtype: str) -> None:
    model = build(dtype, **changes)
    found, expected = (logits(model, native_way=way) for way in (True, False))
    np.testing.assert_array_equal(found[0], expected[0])
    difference = np.abs(found[1] - expected[1]).max() / np.abs(expected[1]).max()
    assert difference < (1e-5 if dtype == "fp32" else 3e-2)
    assert difference > 0


def test_answers_are_those_of_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    sampling = Sampling(max_new_tokens=20, temperature=0.0)

    def answers() -> list[tuple[int, int, str | None]]:
        events = generate(model, PROMPTS, sampling=sampling, end_ids=[11], max_context=64)
        return [(event.row, event.token_id, event.finish_reason) for event in events]

    found = answers()
    assert len(found) > 20
    monkeypatch.setattr(backend, "_backend", "cpu")
    assert answers() == found


def test_a_long_prompt_in_chunks_goes_on_natively(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    prompt = np.random.default_rng(0).integers(1, 60, 40).tolist()
    results = []
    for chunk in (512, 7):
        monkeypatch.setattr("erniekit.generate.engine.PREFILL_CHUNK", chunk)
        decoder = CachedDecoder(model, [prompt], num_columns=42)
        decoder.prefill()
        results.append(decoder.step([3], [0]).copy())
    np.testing.assert_allclose(results[0], results[1], atol=1e-4)


def test_models_that_are_not_its_kind_are_left_alone() -> None:
    assert decoder_table(build()) is not None
    assert decoder_table(object()) is None

    training = build()
    training.train()
    assert decoder_table(training) is None

    class Adapted(Linear):
        """A layer that computes something else."""

    swapped = build()
    swapped.model.layers[1].mlp.down_proj = Adapted(48, 32, bias=False, dtype="float32")
    swapped.eval()
    assert decoder_table(swapped) is None

    heard = build()
    heard.model.norm.register_forward_post_hook(lambda layer, inputs, outputs: None)
    assert decoder_table(heard) is None

    more = build()
    more.model.layers[0].extra = Linear(2, 2, bias=False, dtype="float32")
    more.eval()
    assert decoder_table(more) is None

    mixed = build()
    mixed.model.norm.weight = mixed.model.norm.create_parameter([32], dtype="bfloat16")
    assert decoder_table(mixed) is None
    other = quantised("wint4")
    linear = other.model.layers[0].self_attn.o_proj
    linear.weight.rounding = Rounding("int8", None, tile=16)
    assert decoder_table(other) is None
    sampling = Sampling(max_new_tokens=3, temperature=0.0)
    assert len(list(generate(other, PROMPTS[:1], sampling=sampling, end_ids=[], max_context=64))) == 3
    half = quantised("wint8")
    linear = half.model.layers[0].self_attn.o_proj
    linear.weight = linear.create_parameter([64, 32], dtype="float32")
    assert decoder_table(half) is None


def quantised(scheme: str, **changes: Any) -> Ernie45:
    model = build(**changes)
    items = [(name, "F32", parameter.numpy()) for name, parameter in model.named_parameters()]
    list(weight_only.apply(model, ROLES, scheme, items, dtype="float32"))  # the rest is there already
    return model


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False, "use_bias": True}])
@pytest.mark.parametrize(
    "scheme", ["wint8", "wint4", "wint4_g64", "wint4_g32", "int2", "nf4", "wint2", "wint2.5"]
)
def test_codes_are_decoded_natively_with_a_coded_head(scheme: str, changes: dict[str, Any]) -> None:
    model = quantised(scheme, **changes)
    table = decoder_table(model)
    assert table is not None and isinstance(table.head, CodedHead)
    again = decoder_table(model)
    assert again is not None and again.head is table.head
    found, expected = (logits(model, native_way=way) for way in (True, False))
    # The head is rounded to 8 bits, everything else is the same.
    difference = np.abs(found[1] - expected[1]).max() / np.abs(expected[1]).max()
    assert 1e-4 < difference < 1.5e-2
    name = "lm_head.weight" if changes else "model.embed_tokens.weight"
    head = dict(model.named_parameters())[name]
    head.set_value(head * 2)
    changed = decoder_table(model)
    assert changed is not None and changed.head is not table.head


def test_inputs_keys_and_values_in_int8_are_decoded_natively() -> None:
    model = quantised("wint8")
    scales = np.random.default_rng(0).uniform(0.5, 2, (2, 2, 16)).astype("float32")
    for layer in model.model.layers:
        attention = layer.self_attn
        attention.kv_rounding = KVRounding.of("int8", *scales)
        for linear, scale in ((attention.qkv_proj, 0.02), (layer.mlp.down_proj, 0.01)):
            linear.weight.rounding = Rounding("int8", paddle.to_tensor([scale], dtype="float32"))
    assert decoder_table(model) is not None
    found, expected = (logits(model, native_way=way) for way in (True, False))
    assert np.abs(found[1] - expected[1]).max() / np.abs(expected[1]).max() < 3e-2
    model.model.layers[1].self_attn.kv_rounding = KVRounding.of("e4m3", *scales)
    assert decoder_table(model) is None
    model.model.layers[1].self_attn.kv_rounding = object()
    assert decoder_table(model) is None


def test_other_kernels_decode_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    cache = CachedDecoder(model, [[1]], num_columns=2)._cache
    assert native_steps(model, cache, np.zeros(1, dtype=int)) is not None
    monkeypatch.setattr(backend, "_backend", "cpu")
    assert native_steps(model, cache, np.zeros(1, dtype=int)) is None
