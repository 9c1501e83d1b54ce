"""Routers in training: what their records are turned into, and what happens after the update."""

from dataclasses import replace

import numpy as np
import paddle
import pytest

from erniekit.data.pack import collate
from erniekit.data.sample import Sample
from erniekit.losses.router import load_balance_loss, orthogonal_gradient, orthogonal_loss, router_z_loss
from erniekit.models.ernie45 import plan
from erniekit.models.ernie45.model import Ernie45
from erniekit.ops import gradients
from erniekit.optim.build import build_optimizer
from erniekit.parallel.recompute import Recomputation, apply_recompute
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config
from erniekit.train.evaluation import evaluate
from erniekit.train.objectives import build_objective
from erniekit.train.routing import RouterWatch, watch_routers
from erniekit.train.step_loss import StepLoss

OBJECTIVE = build_objective("SFT", loss_subbatch_seqlen=64, use_sparse_head_and_loss_fn=True)
WEIGHTS = {
    "moe_aux_loss_lambda": 0.0,
    "global_aux_loss": False,
    "moe_z_loss_lambda": 0.0,
    "moe_orthogonal_loss_lambda": 0.0,
    "use_ortho_loss_callback": False,
    "moe_use_aux_free": False,
    "moe_use_aux_free_update_coef": 0.25,
}


def build(modalities=1, dtype="fp32", **changes):
    paddle.seed(3)
    model = Ernie45(tiny_moe_config(modalities, **changes), dtype=dtype)
    for name, parameter in model.named_parameters():
        if len(parameter.shape) >= 2 and "correction" not in name:
            parameter.set_value(paddle.normal(0.0, 0.3, parameter.shape).astype(parameter.dtype))
    model.train()
    return model


def batch(seed, lengths=(9, 14), pad_to=None, types=None):
    random = np.random.default_rng(seed)
    samples = []
    for length in lengths:
        ids = random.integers(3, 250, length).astype(np.int32)
        samples.append(Sample(ids, np.roll(ids, -1), "here:1"))
    made = collate([(sample,) for sample in samples], pad_id=0, pad_to=pad_to)
    return made if types is None else replace(made, token_types=np.full_like(made.input_ids, types))


def watch(model, stage="SFT", **changes):
    (found,) = watch_routers(model, stage, **{**WEIGHTS, **changes})
    return found


def step(model, companion, batches, objective=OBJECTIVE):
    """Forward and backward over the micro-batches; values and gradients."""
    step_loss = StepLoss(objective, [companion])
    step_loss.begin(batches)
    for part in batches:
        step_loss(model, part).backward()
    found = {name: gradients.of(parameter) for name, parameter in model.named_parameters()}
    found = {name: gradient.numpy().copy() for name, gradient in found.items() if gradient is not None}
    for parameter in model.parameters():
        gradients.clear(parameter)
    return step_loss.values(), found


def records(model, part):
    model.router_records = []
    with paddle.no_grad():
        OBJECTIVE(model, part)
    found, model.router_records = model.router_records, None
    return found


def test_a_model_without_routers_has_no_companion(caplog):
    assert watch_routers(Ernie45(tiny_config()), "PT", **WEIGHTS) == ()
    assert not caplog.records
    watch_routers(Ernie45(tiny_config()), "PT", **{**WEIGHTS, "moe_use_aux_free": True})
    watch(build(), use_ortho_loss_callback=True)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and "moe_use_aux_free" in told[0] and "moe_orthogonal_loss_lambda" in told[1]


def test_values_are_sums_over_the_routers_and_means_over_the_micro_batches():
    model = build()
    parts = [batch(0), batch(1, (5, 30))]
    values, _ = step(model, watch(model), parts)
    expected = {"aux_loss": 0.0, "z_loss": 0.0, "orthogonal_loss": 0.0}
    for part in parts:
        counted = paddle.to_tensor(part.is_token().reshape(-1).astype(np.float32))
        for record in records(model, part):
            expected["aux_loss"] += float(
                load_balance_loss(record.probabilities_NE, top_k=2, counted_N=counted)
            )
            expected["z_loss"] += float(router_z_loss(record.logits_NE, counted_N=counted))
            expected["orthogonal_loss"] += float(orthogonal_loss(record.gate_weight_HE))
    for name, total in expected.items():
        assert values[name] == pytest.approx(total / 2, rel=1e-5), name
    # nothing has weight
    assert values["loss"] == values["lm_loss"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("moe_aux_loss_lambda", "aux_loss"),
        ("moe_z_loss_lambda", "z_loss"),
        ("moe_orthogonal_loss_lambda", "orthogonal_loss"),
    ],
)
def test_a_loss_with_weight_is_in_the_total_and_in_the_gradient(key, name):
    model, parts = build(), [batch(0), batch(1)]
    plain, before = step(model, watch(model), parts)
    weighed, after = step(model, watch(model, **{key: 3.0}), parts)
    assert weighed["loss"] == pytest.approx(weighed["lm_loss"] + 3.0 * weighed[name], rel=1e-6)
    assert weighed["lm_loss"] == plain["lm_loss"]
    # against differences of the value along the router's gradient
    gate = dict(model.named_parameters())["model.layers.2.mlp.gate.weight"]
    found = after["model.layers.2.mlp.gate.weight"] - before["model.layers.2.mlp.gate.weight"]
    held, sides = gate.numpy().copy(), []
    for sign in (1, -1):
        gate.set_value(paddle.to_tensor(held + sign * 1e-3 * found / np.linalg.norm(found)))
        sides.append(step(model, watch(model), parts)[0][name])
    gate.set_value(paddle.to_tensor(held))
    assert 3.0 * (sides[0] - sides[1]) / 2e-3 == pytest.approx(np.linalg.norm(found), rel=0.02)


def test_recomputation_changes_no_bit_of_it():
    weights = {"moe_aux_loss_lambda": 0.3, "moe_z_loss_lambda": 0.1, "moe_orthogonal_loss_lambda": 0.2}
    found = []
    for operators in ((), ("block",)):
        model = build(2)
        apply_recompute(model, plan, Recomputation((operators,) * 3))
        companion = watch(model, moe_use_aux_free=True, **weights)
        values, gradient_of = step(model, companion, [batch(0, types=0), batch(1, types=1)])
        companion.after_update()
        biases = {name: p.numpy() for name, p in model.named_parameters() if "correction_bias" in name}
        found.append((values, gradient_of | biases, companion.row()))
    plain, recomputed = found
    assert plain[0] == recomputed[0] and plain[2] == recomputed[2]
    assert plain[1].keys() == recomputed[1].keys()
    assert all((plain[1][name] == array).all() for name, array in recomputed[1].items())


def test_padding_is_no_load():
    model = build()
    found = []
    for pad_to in (16, 40):
        companion = watch(model)
        step(model, companion, [batch(0, pad_to=pad_to)])
        found.append(companion.figures())
    assert [f.load for f in found[0]] == [f.load for f in found[1]]
    assert [f.num_tokens for f in found[0]] == [23, 23]  # 9 + 14, of two layers
    assert all(sum(f.load) == 2 * 23 for f in found[0])
    assert found[0][0].entropy == found[1][0].entropy


def test_the_bias_moves_by_the_usage_of_the_whole_step():
    model = build()
    companion = watch(model, moe_use_aux_free=True)
    parts = [batch(0), batch(1, (7, 20))]
    step(model, companion, parts)
    loads = np.array([f.load for f in companion.figures()])
    expected_loads = np.zeros_like(loads)
    for part in parts:
        keep = part.is_token().reshape(-1)
        for row, record in enumerate(records(model, part)):
            expected_loads[row] += np.bincount(record.selected_Nk.numpy()[keep].ravel(), minlength=4)
    assert loads.tolist() == expected_loads.tolist()
    companion.after_update()
    for layer, load in zip((1, 2), loads, strict=True):
        bias = dict(model.named_parameters())[f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"]
        assert bias.numpy()[0].tolist() == (0.25 * np.sign(load.mean() - load)).tolist()
    companion.begin_step(1)
    assert companion.figures() == []


@pytest.mark.parametrize(
    ("stage", "value", "moves"), [("PT", None, True), ("SFT", None, False), ("PT", False, False)]
)
def test_when_the_bias_moves(stage, value, moves):
    model = build()
    companion = watch(model, stage, moe_use_aux_free=value)
    step(model, companion, [batch(0)])
    companion.after_update()
    held = [p.numpy() for name, p in model.named_parameters() if "correction_bias" in name]
    assert len(held) == 2 and any(array.any() for array in held) is moves


def test_a_frozen_router_keeps_its_bias_and_its_matrix():
    model = build()
    gates = {name: p for name, p in model.named_parameters() if name.endswith("gate.weight")}
    gates["model.layers.1.mlp.gate.weight"].stop_gradient = True
    before = {name: gate.numpy().copy() for name, gate in gates.items()}
    companion = watch(
        model, moe_use_aux_free=True, moe_orthogonal_loss_lambda=0.5, use_ortho_loss_callback=True
    )
    step(model, companion, [batch(0)])
    companion.after_update()
    held = {name: p.numpy() for name, p in model.named_parameters()}
    assert not held["model.layers.1.mlp.moe_statics.e_score_correction_bias"].any()
    assert held["model.layers.2.mlp.moe_statics.e_score_correction_bias"].any()
    first, second = before
    assert (held[first] == before[first]).all() and (held[second] != before[second]).any()


def test_the_decoupled_orthogonal_step_is_no_part_of_the_loss():
    model = build()
    companion = watch(model, moe_orthogonal_loss_lambda=0.5, use_ortho_loss_callback=True)
    plain = step(model, watch(model), [batch(0)])
    values, found = step(model, companion, [batch(0)])
    assert values["loss"] == values["lm_loss"] == plain[0]["loss"] and values["orthogonal_loss"] > 0
    assert all((found[name] == gradient).all() for name, gradient in plain[1].items())
    gate = dict(model.named_parameters())["model.layers.1.mlp.gate.weight"]
    expected = gate.numpy() - 0.5 * orthogonal_gradient(gate).numpy()
    companion.after_update()
    assert gate.numpy() == pytest.approx(expected, abs=1e-7)
    assert step(model, companion, [batch(0)])[0]["orthogonal_loss"] < values["orthogonal_loss"]


def test_evaluation_counts_and_changes_nothing():
    model = build()
    before = {name: parameter.numpy().copy() for name, parameter in model.named_parameters()}
    looked = RouterWatch(model)
    result = evaluate(model, [batch(0), batch(1)], OBJECTIVE, looked)
    assert result.num_tokens == 46 and [sum(f.load) for f in looked.figures()] == [92, 92]
    assert model.router_records is None
    looked.after_update()
    assert all((before[name] == parameter.numpy()).all() for name, parameter in model.named_parameters())
    assert evaluate(model, [batch(0), batch(1)], OBJECTIVE).loss == result.loss


@pytest.mark.parametrize(("types", "absent", "row"), [(0, "vision", 1), (None, "vision", 1), (1, "text", 0)])
def test_experts_of_a_modality_that_is_not_there_are_not_touched(types, absent, row):
    model = build(2)
    companion = watch(
        model, moe_use_aux_free=True, moe_aux_loss_lambda=0.1, moe_z_loss_lambda=0.1,
        moe_orthogonal_loss_lambda=0.1,
    )  # fmt: skip
    _, found = step(model, companion, [batch(0, types=types)])
    companion.after_update()
    parts = {
        "vision": ("vision_experts", "gate.weight_1"),
        "text": (".mlp.experts.", "gate.weight"),
    }
    of = {
        modality: [
            name
            for name in dict(model.named_parameters())
            if marks[0] in name or name.endswith(marks[1])
        ]
        for modality, marks in parts.items()
    }  # fmt: skip
    assert len(of["text"]) == len(of["vision"]) == 2 * 3
    assert not any(found[name].any() for name in of[absent] if name in found)
    present = "text" if absent == "vision" else "vision"
    assert all(found[name].any() for name in of[present])
    biases = [p.numpy() for name, p in model.named_parameters() if "correction_bias" in name]
    assert not any(bias[row].any() for bias in biases) and all(bias[1 - row].any() for bias in biases)
    assert {f.modality for f in companion.figures()} == {present}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_both_modalities_in_one_batch(dtype):
    model = build(2, dtype)
    companion = watch(model, moe_use_aux_free=True, moe_aux_loss_lambda=0.1)
    mixed = batch(0, types=0)
    mixed.token_types[0, 2:6] = 1
    mixed.token_types[1, 1:3] = 2
    values, found = step(model, companion, [mixed])
    figures = companion.figures()
    assert [(f.layer, f.modality, f.num_tokens) for f in figures] == [
        *((1, "text", 17), (1, "vision", 6)),
        *((2, "text", 17), (2, "vision", 6)),
    ]
    assert found["model.layers.1.mlp.gate.weight_1"].any() and values["aux_loss"] > 0


def test_text_alone_trains_nothing_of_the_vision_half():
    """Whole steps with decay and momentum: what has no tokens keeps its bits, also after it had some."""
    model = build(2)
    companion = watch(model, moe_use_aux_free=True, moe_aux_loss_lambda=0.1, moe_orthogonal_loss_lambda=0.1)
    optimizer = build_optimizer(
        list(model.named_parameters()), optim="adamw", learning_rate=0.01, weight_decay=0.1, adam_beta1=0.9,
        adam_beta2=0.99, adam_epsilon=1e-8, max_grad_norm=1.0, layerwise_lr_decay_bound=1.0,
    )  # fmt: skip
    step_loss = StepLoss(OBJECTIVE, [companion])
    held = []
    for types in (1, 0, 0):
        parts = [batch(types, types=types), batch(5, types=types)]
        step_loss.begin(parts)
        for part in parts:
            step_loss(model, part).backward()
            optimizer.accumulate_grads()
        optimizer.grad_norm_and_clip()
        optimizer.step(0.01)
        companion.after_update()
        optimizer.zero_grad()
        held.append({name: parameter.numpy().copy() for name, parameter in model.named_parameters()})
    after_vision, *after_text = held
    changed = {
        name for name in after_vision for later in after_text if (after_vision[name] != later[name]).any()
    }
    vision = {name for name in after_vision if "vision_experts" in name or name.endswith("gate.weight_1")}
    assert len(vision) == 6 and not vision & changed
    biases = {name for name in after_vision if "correction_bias" in name}
    assert changed == set(after_vision) - vision
    assert all((after_vision[name][1] == later[name][1]).all() for name in biases for later in after_text)


def test_a_collapsed_router_is_told_once(caplog):
    model = build(moe_num_experts=(16,), num_hidden_layers=2)
    bias = dict(model.named_parameters())["model.layers.1.mlp.moe_statics.e_score_correction_bias"]
    bias.set_value(paddle.to_tensor([[5.0, 5.0] + [0.0] * 14]))
    companion = watch(model)
    for _ in range(2):
        step(model, companion, [batch(0, (60, 60))])
        row = companion.row()
    assert row["router_max_over_mean"] == 8.0 and row["routers"][0]["load"][:3] == [120, 120, 0]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and "layer 1" in told[0] and "moe_use_aux_free" in told[0]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_multi_token_blocks_have_their_loss(dtype):
    model = build(dtype=dtype, num_nextn_predict_layers=1)
    step_loss = StepLoss(OBJECTIVE, num_depths=1, multi_token_pred_lambda=0.3)
    parts = [batch(0), batch(1, (3, 12))]
    step_loss.begin(parts)
    for part in parts:
        step_loss(model, part).backward()
    values = step_loss.values()
    assert values["loss"] == pytest.approx(values["lm_loss"] + 0.3 * values["mtp_loss"], rel=1e-6)
    assert 4 < values["mtp_loss"] < 50
    gradient = gradients.of(dict(model.named_parameters())["model.mtp_linear_proj.0.weight"])
    assert gradient is not None and bool(gradient.abs().sum() > 0)


def test_a_router_that_had_tokens_elsewhere_alone_is_balanced_here_too():
    model = build()
    companion = watch(model, moe_use_aux_free=True)
    # Elsewhere the second router had tokens, and more for later experts.
    companion.total = lambda counts: counts + paddle.arange(len(counts)).astype(counts.dtype)
    companion.begin_step(1)
    companion.after_update()
    held = dict(model.named_parameters())
    first, second = (
        held[f"model.layers.{layer}.mlp.moe_statics.e_score_correction_bias"].numpy() for layer in (1, 2)
    )
    assert not first.any()
    np.testing.assert_allclose(second, [[0.25, 0.25, -0.25, -0.25]])
