"""What arithmetic in few bits keeps, by hand."""

import pytest

from erniekit.estimate.low_precision import Added, fp8_bytes
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from tests.estimate.test_native_memory import PARAMETERS, estimate

KEYS = dict.fromkeys(
    ("fp8_dequant_input", "fp8_swiglu_input", "fp8_shared_expert", "fp8_offline_quant_weight"), False
)
BYTE = 1 + 4 / 128


def found(config, **switches):
    return fp8_bytes(config, width=2, **{**KEYS, **switches})


def test_dense():
    # hidden 32, inner 48, 2 layers
    config = tiny_config()
    assert found(config) == Added(0, 96 * 2, 0)
    assert found(config, fp8_swiglu_input=True).working == 2 * 96 * 2
    assert found(config, fp8_swiglu_input=True).token == pytest.approx(2 * 96 * (BYTE - 2))
    assert found(config, fp8_dequant_input=True).token == pytest.approx(2 * (32 + 48) * BYTE)
    weights = found(config, fp8_offline_quant_weight=True)
    assert weights.always == pytest.approx(2 * 3 * 32 * 48 * (1 + 4 / 128**2)) and weights.token == 0


def test_experts():
    # Layer 0 is dense, two layers have 4 experts of 24 inside, of which a token takes 2.
    config = tiny_moe_config(moe_layer_start_index=(1,), moe_num_shared_experts=1)
    assert [config.is_moe_layer(layer) for layer in range(3)] == [False, True, True]
    token = found(config, fp8_swiglu_input=True).token
    assert token == pytest.approx((96 + 2 * 2 * 48) * (BYTE - 2))
    with_shared = found(config, fp8_swiglu_input=True, fp8_shared_expert=True).token
    assert with_shared == pytest.approx(token + 2 * 48 * (BYTE - 2))
    weights = found(config, fp8_offline_quant_weight=True).always
    assert weights == pytest.approx(3 * 32 * (48 + 2 * 4 * 24) * (1 + 4 / 128**2))


def test_it_is_part_of_a_step():
    plain, more = estimate(), estimate(added=Added(token=100.0, always=1000.0))
    assert more["weights"] == 2 * PARAMETERS + 1000
    assert more["activations"] == plain["activations"] + 1024 * 100
