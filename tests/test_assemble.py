import json
from pathlib import Path

import numpy as np
import paddle
import pytest

from erniekit import assemble
from erniekit.checkpoint.files import open_tensors
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.quant.schemes import WHILE_READ
from erniekit.quant.weight_only import quantised_matrices
from erniekit.testing.distributed import run_distributed
from erniekit.testing.tiny_checkpoint import tiny_moe_config, write_tiny_checkpoint
from tests.adapters.models import DEFAULTS

FIELDS = dict(
    continue_training=True,
    compute_type="fp32",
    fine_tuning="Full",
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    freeze=(),
)


@pytest.fixture
def folder(tmp_path):
    return write_tiny_checkpoint(tmp_path / "model")


def test_weights_are_those_of_the_folder(folder):
    built = assemble.build_model(folder, **FIELDS)
    stored = open_tensors(folder).read("model.embed_tokens.weight")
    assert np.array_equal(built.model.model.embed_tokens.weight.numpy(), stored)
    assert built.num_parameters == built.num_trained == built.config.num_parameters()
    assert built.model.training


def test_fresh_weights_need_only_the_configuration(folder):
    (folder / "model.safetensors").unlink()
    paddle.seed(1)
    built = assemble.build_model(folder, **{**FIELDS, "continue_training": False})
    assert 0 < float(built.model.model.embed_tokens.weight.std()) < 1
    with pytest.raises(CheckpointError, match="model.safetensors"):
        assemble.build_model(folder, **FIELDS)


def test_bf16_casts_once(folder):
    built = assemble.build_model(folder, **{**FIELDS, "compute_type": "bf16"})
    weight = built.model.model.embed_tokens.weight
    stored = paddle.to_tensor(open_tensors(folder).read("model.embed_tokens.weight")).astype("bfloat16")
    assert weight.dtype == paddle.bfloat16 and np.array_equal(weight.numpy(), stored.numpy())


def test_freezing(folder):
    built = assemble.build_model(folder, **{**FIELDS, "freeze": (r"\.layers\.0\.", "norm")})
    frozen = {name for name, parameter in built.model.named_parameters() if parameter.stop_gradient}
    assert frozen and all(".layers.0." in name or "norm" in name for name in frozen)
    assert built.num_trained < built.num_parameters
    for pattern, message in [
        ("nothing", "matches no parameter"),
        ("(", "no.*regular expression"),
        (".", "every"),
    ]:
        with pytest.raises(ConfigError, match=message):
            assemble.build_model(folder, **{**FIELDS, "freeze": (pattern,)})


# Of a mixture of experts for text and vision; the table of docs/routing.md.
FREEZE_PARTS = {
    (r"\.experts\.", r"\.gate\.weight$"): {
        "mlp.experts.up_gate_proj.weight",
        "mlp.experts.down_proj.weight",
        "mlp.gate.weight",
    },
    (r"\.vision_experts\.", r"\.gate\.weight_1$"): {
        "mlp.vision_experts.up_gate_proj.weight",
        "mlp.vision_experts.down_proj.weight",
        "mlp.gate.weight_1",
    },
    (r"\.(vision_)?experts\.",): {
        "mlp.experts.up_gate_proj.weight",
        "mlp.experts.down_proj.weight",
        "mlp.vision_experts.up_gate_proj.weight",
        "mlp.vision_experts.down_proj.weight",
    },
    (r"\.shared_experts\.",): {
        "mlp.shared_experts.up_gate_proj.weight",
        "mlp.shared_experts.down_proj.weight",
    },
    (r"\.gate\.",): {"mlp.gate.weight", "mlp.gate.weight_1"},
}


@pytest.mark.parametrize("patterns", FREEZE_PARTS)
def test_parts_of_a_mixture_of_experts_are_frozen_by_their_names(tmp_path, patterns):
    folder = write_tiny_checkpoint(tmp_path / "experts", tiny_moe_config(2))
    built = assemble.build_model(folder, **{**FIELDS, "freeze": patterns})
    frozen = {name for name, parameter in built.model.named_parameters() if parameter.stop_gradient}
    biases = {f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias" for layer in (1, 2)}
    expected = {f"model.layers.{layer}.{name}" for layer in (1, 2) for name in FREEZE_PARTS[patterns]}
    assert frozen == expected | biases  # the biases are never trained by gradients


def test_all_but_the_experts_may_be_frozen_and_not_everything(tmp_path):
    folder = write_tiny_checkpoint(tmp_path / "experts", tiny_moe_config())
    built = assemble.build_model(folder, **{**FIELDS, "freeze": (r"^(?!.*\.experts\.)",)})
    trained = {name for name, parameter in built.model.named_parameters() if not parameter.stop_gradient}
    assert len(trained) == 4 and all(".mlp.experts." in name for name in trained)
    with pytest.raises(ConfigError, match="nothing would be trained"):
        assemble.build_model(folder, **{**FIELDS, "freeze": (r"^(?!.*correction_bias)",)})


def test_what_is_not_built_is_said(folder):
    with pytest.raises(UnsupportedError, match="not built yet"):
        assemble.build_model(folder, **{**FIELDS, "fine_tuning": "Prefix"})
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "model_type": "llama"}))
    with pytest.raises(UnsupportedError, match="llama"):
        assemble.build_model(folder, **FIELDS)


def test_weights_that_do_not_fit_are_refused_before_they_are_made(folder, monkeypatch):
    from erniekit.estimate import hardware

    monkeypatch.setattr(hardware, "available_memory", lambda: 60_000)
    message = "30,112 parameters in fp32 need 0.1 MB of memory, and 0.1 MB are free"
    with pytest.raises(UnsupportedError, match=message):
        assemble.load_for_inference(folder, compute_type="fp32")


def test_a_mixture_of_experts_is_built(tmp_path):
    config = tiny_moe_config()
    built = assemble.build_model(write_tiny_checkpoint(tmp_path / "moe", config), **FIELDS)
    names = {name for name, p in built.model.named_parameters() if not p.stop_gradient}
    assert built.num_parameters == config.num_parameters()
    assert built.num_trained == config.num_parameters() - 2 * 4  # the corrections of two routers
    assert "model.layers.1.mlp.experts.down_proj.weight" in names


def test_inference_trains_nothing(folder):
    built = assemble.load_for_inference(folder)
    assert built.num_trained == 0 and not built.model.training
    assert built.compute_dtype == assemble.number_types("auto")[0]


def test_auto_is_bf16_where_kernels_multiply_it(monkeypatch):
    for multiplies, expected in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr("erniekit.ops.backend.multiplies_bf16", lambda answer=multiplies: answer)
        assert assemble.number_types("auto")[0] == expected
    assert assemble.number_types("bf16")[0] == "bf16"


@pytest.mark.parametrize("scheme", WHILE_READ)
def test_quantised_under_an_adapter(folder, scheme, monkeypatch):
    """What the adapter belongs to is the weights as they are in the files."""
    monkeypatch.setattr("erniekit.ops.backend.multiplies_bf16", lambda: False)
    fields = {**FIELDS, "fine_tuning": "LoRA"}
    plain = assemble.build_model(folder, assemble.Adaptation(DEFAULTS), **fields)
    built = assemble.build_model(folder, assemble.Adaptation(DEFAULTS), **{**fields, "compute_type": scheme})
    assert built.fingerprint == plain.fingerprint
    assert (built.num_parameters, built.num_trained) == (plain.num_parameters, plain.num_trained)
    assert (built.scheme, built.compute_dtype) == (scheme, "fp32")
    assert built.numbers_in_words() == assemble.numbers_in_words(scheme) == f"{scheme} with fp32"
    assert plain.scheme is None and plain.numbers_in_words() == "fp32"
    assert len(quantised_matrices(built.model)) == 8 and not quantised_matrices(plain.model)


def test_a_quantised_model_needs_less_memory(folder, monkeypatch):
    from erniekit.estimate import hardware

    monkeypatch.setattr(hardware, "available_memory", lambda: 100_000)
    with pytest.raises(UnsupportedError, match="in fp32 need 0.1 MB"):
        assemble.load_for_inference(folder, compute_type="fp32")
    assert assemble.load_for_inference(folder, compute_type="fp32", scheme="wint4").scheme == "wint4"


def test_a_device_comes_with_its_kernels(monkeypatch):
    from erniekit.ops import backend

    monkeypatch.delenv(backend.VARIABLE, raising=False)
    monkeypatch.setattr(backend, "_backend", None)
    assemble.set_device(device="cpu", seed=0, kernels="paddle")
    assert backend.current_backend() == "cpu"


def test_a_gpu_that_is_not_there_is_refused():
    if paddle.device.is_compiled_with_cuda():
        pytest.skip("this Paddle has CUDA")
    with pytest.raises(ConfigError, match="sees no GPU"):
        assemble.set_device(device="gpu:0", seed=0)
    assert assemble.set_device(device="auto", seed=0) == "cpu"


def test_blocks_of_prediction_ahead_as_asked(tmp_path, caplog):
    """More are fresh, fewer are left out with a notice; an adapter takes no fresh ones."""
    caplog.set_level("INFO", logger="erniekit")
    folder = write_tiny_checkpoint(tmp_path / "moe", tiny_moe_config(num_nextn_predict_layers=1))
    stored = open_tensors(folder).read("model.mtp_emb_norm.0.weight")
    for asked, names in ((None, 1), (1, 1), (2, 2), (0, 0)):
        built = assemble.build_model(folder, **FIELDS, num_nextn_predict_layers=asked)
        assert built.config.num_nextn_predict_layers == len(built.model.model.mtp_block) == names
        assert built.num_trained == built.num_parameters - 2 * 4, "all but the correction biases"
        assert built.num_parameters == built.config.num_parameters()
        if names:
            assert np.array_equal(built.model.model.mtp_emb_norm[0].weight.numpy(), stored)
    told = [r.getMessage() for r in caplog.records if "multi-token" in r.getMessage()]
    assert len(told) == 2 and "1 new blocks" in told[0] and "1 of 1 blocks are left out" in told[1]
    lora = {**FIELDS, "fine_tuning": "LoRA"}
    with pytest.raises(
        ConfigError, match="num_nextn_predict_layers: 2: the model has 1, and under an adapter"
    ):
        assemble.build_model(folder, assemble.Adaptation(), **lora, num_nextn_predict_layers=2)
    with pytest.raises(UnsupportedError, match="this model is dense"):
        assemble.build_model(write_tiny_checkpoint(tmp_path / "dense"), **FIELDS, num_nextn_predict_layers=1)


def counted(folder: str, *, alone: bool = False) -> list[tuple[int, int]]:
    """Parameters of an adapted model on quantised weights, and those trained, under two plans."""
    from erniekit.parallel import comm
    from erniekit.parallel.layout import Layout
    from erniekit.parallel.mesh import open_mesh

    world = comm.Group() if alone else comm.open_world()
    found = []
    for layout in (Layout(data=2), Layout(tensor=2)):
        built = assemble.build_model(
            Path(folder),
            assemble.Adaptation(DEFAULTS),
            None if alone else open_mesh(layout, world),
            **{**FIELDS, "compute_type": "wint4", "fine_tuning": "LoRA"},
        )
        found.append((built.num_parameters, built.num_trained))
    return found


def test_parameters_of_several_processes_are_counted_once(tmp_path):
    folder = str(write_tiny_checkpoint(tmp_path / "model"))
    found = run_distributed("tests.test_assemble:counted", 2, folder, timeout=300)
    assert found == 2 * [counted(folder, alone=True)]
