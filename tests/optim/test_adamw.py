"""AdamW against numbers worked by hand and against Paddle's own."""

import math

import numpy as np
import paddle
import pytest

from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.optim.build import build_optimizer
from erniekit.optim.groups import decays, learning_rate_ratios

FIELDS = dict(
    optim="adamw",
    learning_rate=0.1,
    weight_decay=0.0,
    adam_beta1=0.9,
    adam_beta2=0.99,
    adam_epsilon=1e-8,
    max_grad_norm=0.0,
    layerwise_lr_decay_bound=1.0,
)


def parameter(values, dtype="float32"):
    zero = paddle.nn.initializer.Constant(0.0)
    made = paddle.create_parameter([len(values)], dtype, default_initializer=zero)
    made.set_value(paddle.to_tensor(values, dtype="float32").astype(dtype))
    return made


def give(target, gradient):
    (target.astype("float32") * paddle.to_tensor(gradient)).sum().backward()


def test_two_updates_worked_by_hand():
    weight = parameter([1.0])
    optimizer = build_optimizer([("w", weight)], **{**FIELDS, "weight_decay": 0.5})
    give(weight, [2.0])
    optimizer.step(0.1)
    optimizer.zero_grad()
    # m/(1-b1) = 2, sqrt(v/(1-b2)) = 2: a step of exactly lr, after the decay by 1 - 0.1 * 0.5.
    assert weight.item() == pytest.approx(0.95 - 0.1, rel=1e-6)
    give(weight, [-1.0])
    optimizer.step(0.2)
    # m = 0.9*0.2 - 0.1 = 0.08, v = 0.99*0.04 + 0.01 = 0.0496; corrections 0.19 and 0.0199.
    step = 0.2 * (0.08 / 0.19) / math.sqrt(0.0496 / 0.0199)
    assert weight.item() == pytest.approx(0.85 * 0.9 - step, rel=1e-6)


def test_equals_paddles_own_adamw():
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=7).tolist(), rng.normal(size=(5, 7)).astype("float32")
    ours, theirs = parameter(start), parameter(start)
    optimizer = build_optimizer([("w", ours)], **{**FIELDS, "weight_decay": 0.1})
    reference = paddle.optimizer.AdamW(0.01, 0.9, 0.99, 1e-8, parameters=[theirs], weight_decay=0.1)
    for gradient in gradients:
        give(ours, gradient)
        optimizer.step(0.01)
        optimizer.zero_grad()
        give(theirs, gradient)
        reference.step()
        reference.clear_grad()
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=2e-6)


def test_norms_and_biases_do_not_decay():
    names = ["model.norm.weight", "a.input_layernorm.weight", "a.qkv_proj.bias", "a.qkv_proj.weight"]
    assert [decays(name) for name in names] == [False, False, False, True]
    weights = {name: parameter([1.0]) for name in names}
    optimizer = build_optimizer(list(weights.items()), **{**FIELDS, "weight_decay": 0.5})
    for weight in weights.values():
        give(weight, [0.0])
    optimizer.step(0.1)
    assert [round(w.item(), 6) for w in weights.values()] == [1.0, 1.0, 1.0, 0.95]


def test_depth_dependent_rates():
    names = ["model.embed_tokens.weight", "model.layers.0.a", "model.layers.1.a", "model.norm.weight"]
    assert list(learning_rate_ratios(names, 0.5).values()) == [0.5, 0.5, 1.0, 1.0]
    assert set(learning_rate_ratios(names, 1.0).values()) == {1.0}
    deep = [f"model.layers.{index}.mlp.down_proj.weight" for index in range(5)]
    assert list(learning_rate_ratios(deep, 0.2).values()) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert learning_rate_ratios(deep[:1] + ["lm_head.weight"], 0.2) == {deep[0]: 1.0, "lm_head.weight": 1.0}
    weights = {name: parameter([0.0]) for name in names}
    optimizer = build_optimizer(list(weights.items()), **{**FIELDS, "layerwise_lr_decay_bound": 0.5})
    for weight in weights.values():
        give(weight, [3.0])
    optimizer.step(0.1)  # the first update of AdamW is the rate itself
    assert [w.item() for w in weights.values()] == pytest.approx([-0.05, -0.05, -0.1, -0.1], rel=1e-6)


def test_routers_learn_at_a_rate_of_their_own():
    names = [
        "model.layers.0.mlp.gate.weight",
        "model.layers.1.mlp.gate.weight",
        "model.layers.1.mlp.gate.weight_1",
        "model.layers.1.mlp.experts.up_gate_proj.weight",
        "model.layers.1.mlp.gate_proj.weight",
    ]
    found = learning_rate_ratios(names, 0.5, 0.01)
    assert list(found.values()) == pytest.approx([0.005, 0.01, 0.01, 1.0, 1.0])
    gate, other = parameter([0.0]), parameter([0.0])
    optimizer = build_optimizer([(names[1], gate), (names[3], other)], **FIELDS, moe_gate_lr_ratio=0.25)
    give(gate, [3.0])
    give(other, [3.0])
    optimizer.step(0.1)
    assert [gate.item(), other.item()] == pytest.approx([-0.025, -0.1], rel=1e-6)


def test_clipping_is_by_the_global_norm():
    first, second = parameter([0.0]), parameter([0.0])
    optimizer = build_optimizer([("a", first), ("b", second)], **{**FIELDS, "max_grad_norm": 1.0})
    give(first, [3.0])
    give(second, [4.0])
    assert optimizer.grad_norm_and_clip() == pytest.approx(5.0)
    optimizer.step(0.1)
    state = {name: array for name, _, array in optimizer.state_items()}
    assert state["exp_avg.a"][0] == pytest.approx(0.1 * 3 / 5)
    assert state["exp_avg.b"][0] == pytest.approx(0.1 * 4 / 5)
    # The factor was of that step: without a new norm the next gradient counts as it is.
    optimizer.zero_grad()
    give(first, [3.0])
    optimizer.step(0.1)
    state = {name: array for name, _, array in optimizer.state_items()}
    assert state["exp_avg.a"][0] == pytest.approx(0.9 * 0.06 + 0.1 * 3)


def test_a_norm_below_the_limit_clips_nothing():
    weight = parameter([0.0, 0.0])
    optimizer = build_optimizer([("a", weight)], **{**FIELDS, "max_grad_norm": 5.0})
    give(weight, [3.0, 4.0])
    assert optimizer.grad_norm_and_clip() == pytest.approx(5.0)
    optimizer.step(0.1)
    state = {name: array for name, _, array in optimizer.state_items()}
    assert state["exp_avg.a"].tolist() == pytest.approx([0.3, 0.4])


def test_the_norm_of_many_numbers_is_exact_enough():
    gradient = np.random.default_rng(3).normal(size=300_000).astype("float32")
    weight = parameter([0.0] * 300_000)
    optimizer = build_optimizer([("a", weight)], **FIELDS)
    give(weight, gradient)
    exact = float(np.sqrt((gradient.astype("float64") ** 2).sum()))
    assert optimizer.grad_norm_and_clip() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_norm_that_is_not_finite_is_told(bad):
    weight = parameter([1.0])
    optimizer = build_optimizer([("a", weight)], **{**FIELDS, "max_grad_norm": 1.0})
    give(weight, [bad])
    assert not math.isfinite(optimizer.grad_norm_and_clip())
    assert weight.item() == 1.0
    optimizer.zero_grad()  # the step is skipped; the next one is as if it had not been
    give(weight, [2.0])
    assert optimizer.grad_norm_and_clip() == 2.0
    optimizer.step(0.1)
    assert weight.item() == pytest.approx(0.9, rel=1e-6)


def test_bf16_parameters_move_by_less_than_their_spacing():
    weight = parameter([1.0], "bfloat16")
    optimizer = build_optimizer([("a", weight)], **FIELDS)
    for _ in range(20):
        give(weight, [1.0])
        optimizer.accumulate_grads()
        optimizer.step(0.001)
        optimizer.zero_grad()
    # bf16 has a spacing of 0.0039 below 1: single updates of 0.001 would all be lost without a master.
    assert float(weight.astype("float32")) == pytest.approx(0.98, abs=0.004)
    state = {name: array for name, _, array in optimizer.state_items()}
    assert state["master.a"][0] == pytest.approx(0.98, rel=1e-5)


def test_bf16_gradients_are_summed_in_fp32():
    weight = parameter([1.0], "bfloat16")
    optimizer = build_optimizer([("a", weight)], **FIELDS)
    for gradient in [256.0] + [0.5] * 8:
        give(weight, [gradient])
        optimizer.accumulate_grads()
    assert optimizer.grad_norm_and_clip() == 260.0
    assert weight.grad is None


def test_the_last_micro_batch_is_taken_in_also_when_nobody_says_so():
    weight = parameter([1.0], "bfloat16")
    optimizer = build_optimizer([("a", weight)], **FIELDS)
    give(weight, [2.0])
    assert optimizer.grad_norm_and_clip() == 2.0
    optimizer.step(0.5)
    assert float(weight.astype("float32")) == 0.5


def test_frozen_parameters_have_no_state():
    free, frozen = parameter([1.0]), parameter([1.0])
    frozen.stop_gradient = True
    optimizer = build_optimizer([("a", free), ("b", frozen)], **FIELDS)
    assert not [name for name, _, _ in optimizer.state_items() if name.endswith(".b")]


class Reader:
    folder = "x"

    def __init__(self, items):
        self._items = {name: array for name, _, array in items}

    def names(self):
        return list(self._items)

    def read(self, name):
        return self._items[name]

    def info(self, name):
        return self._items[name]  # an array has a shape


def test_the_state_of_another_model_is_refused():
    optimizer = build_optimizer([("w", parameter([1.0, 2.0]))], **FIELDS)
    other = build_optimizer([("v", parameter([1.0, 2.0]))], **FIELDS)
    with pytest.raises(CheckpointError, match="differs in 4 tensors, exp_avg.v"):
        optimizer.load_state(Reader(other.state_items()))
    longer = build_optimizer([("w", parameter([1.0, 2.0, 3.0]))], **FIELDS)
    with pytest.raises(CheckpointError, match=r"exp_avg.w is \[3\] there, \[2\] here"):
        optimizer.load_state(Reader(longer.state_items()))


def test_words():
    assert type(build_optimizer([], **{**FIELDS, "optim": "adamw_custom"})).__name__ == "AdamW"
    with pytest.raises(UnsupportedError, match="optim: adafactor is not built yet"):
        build_optimizer([], **{**FIELDS, "optim": "adafactor"})


def test_the_names_of_the_state():
    optimizer = build_optimizer([("w", parameter([1.0], "bfloat16")), ("n", parameter([1.0]))], **FIELDS)
    names = [name for name, _, _ in optimizer.state_items()]
    assert sorted(names) == [
        "exp_avg.n",
        "exp_avg.w",
        "exp_avg_sq.n",
        "exp_avg_sq.w",
        "master.w",
        "num_updates",
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_state_goes_on_bit_by_bit(dtype):
    def run(weight, optimizer, gradients):
        for gradient in gradients:
            give(weight, [gradient, 1.0])
            optimizer.accumulate_grads()
            optimizer.grad_norm_and_clip()
            optimizer.step(0.01)
            optimizer.zero_grad()

    whole = parameter([1.0, 2.0], dtype)
    run(whole, build_optimizer([("w", whole)], **FIELDS), [0.3, -0.2, 0.7, 0.1])
    half = parameter([1.0, 2.0], dtype)
    first = build_optimizer([("w", half)], **FIELDS)
    run(half, first, [0.3, -0.2])
    second = build_optimizer([("w", half)], **FIELDS)
    second.load_state(Reader(first.state_items()))
    run(half, second, [0.7, 0.1])
    assert whole.numpy().tobytes() == half.numpy().tobytes()


def test_moments_in_bf16_are_stored_so_and_keep_their_mean():
    size = 4000
    weight = parameter([0.0] * size)
    optimizer = build_optimizer([("w", weight)], **{**FIELDS, "use_lowprecision_moment": True})
    # 0.1 * 1.003 lies between two bf16 numbers, 0.04 % above one and 0.35 % below the next.
    for _ in range(2):
        give(weight, [1.003] * size)
        optimizer.step(0.0)
        optimizer.zero_grad()
    state = {name: (kind, array) for name, kind, array in optimizer.state_items()}
    kind, bits = state["exp_avg.w"]
    assert kind == "BF16" and bits.dtype == np.uint16
    moment = (bits.astype(np.uint32) << 16).view(np.float32)
    assert len(np.unique(moment)) > 1
    assert moment.mean() == pytest.approx(1.003 * 0.19, rel=2e-4)
    second = (state["exp_avg_sq.w"][1].astype(np.uint32) << 16).view(np.float32)
    assert second.mean() == pytest.approx(1.003**2 * 0.0199, rel=2e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_with_bf16_moments_stays_near(dtype):
    rng, found = np.random.default_rng(1), []
    targets = rng.normal(size=50).astype("float32")
    for narrow in (False, True):
        weight = parameter([0.0] * 50, dtype)
        optimizer = build_optimizer([("w", weight)], **{**FIELDS, "use_lowprecision_moment": narrow})
        for step in range(200):
            give(weight, weight.astype("float32").numpy() - targets)
            optimizer.step(0.05 * (1 - step / 200))
            optimizer.zero_grad()
        found.append(np.abs(weight.astype("float32").numpy() - targets).max())
    assert found[0] < 0.03 and found[1] < 1.2 * found[0], found


@pytest.mark.parametrize("narrow", [False, True])
def test_moments_of_one_type_load_into_the_other(narrow):
    def build(low):
        return build_optimizer([("w", parameter([1.0]))], **{**FIELDS, "use_lowprecision_moment": low})

    optimizer = build(not narrow)
    weight = optimizer._parameters["w"]
    give(weight, [3.0])
    optimizer.step(0.1)
    other = build(narrow)
    other.load_state(Reader(optimizer.state_items()))
    values = {name: (kind, array) for name, kind, array in other.state_items()}
    kind, array = values["exp_avg.w"]
    assert kind == ("BF16" if narrow else "F32")
    wide = (array.astype(np.uint32) << 16).view(np.float32) if narrow else array
    assert wide[0] == pytest.approx(0.3, rel=0.01)


def test_main_gradients_count_and_what_paddle_gave_beside_them():
    for dtype in ("float32", "bfloat16"):
        weight = parameter([0.0, 0.0], dtype)
        optimizer = build_optimizer([("a", weight)], **FIELDS)
        weight.main_grad = paddle.to_tensor([3.0, 0.0])
        assert optimizer.grad_norm_and_clip() == 3.0
        give(weight, [0.0, 4.0])
        optimizer.accumulate_grads()
        assert weight.grad is None
        assert optimizer.grad_norm_and_clip() == 5.0
        optimizer.zero_grad()
        assert weight.main_grad is None
        assert optimizer.grad_norm_and_clip() == 0.0


def test_a_parameter_without_gradient_stays():
    first, second = parameter([1.0]), parameter([1.0], "bfloat16")
    optimizer = build_optimizer([("a", first), ("b", second)], **{**FIELDS, "weight_decay": 0.5})
    give(first, [1.0])
    optimizer.step(0.1)
    assert first.item() < 1.0 and float(second.astype("float32")) == 1.0


def test_nothing_to_train_is_no_error():
    optimizer = build_optimizer([], **FIELDS)
    assert optimizer.grad_norm_and_clip() == 0.0
    optimizer.step(0.1)


def some_parameters(count):
    values = np.random.default_rng(5).normal(size=[count, 40])
    return [(f"layers.{number}.weight", parameter(row, "bfloat16")) for number, row in enumerate(values)]


def give_each(named, seed):
    rng = np.random.default_rng(seed)
    for _, weight in named:
        give(weight, rng.normal(size=weight.shape).astype("float32"))


def test_parameters_shared_among_processes_move_as_those_of_one():
    fields = {**FIELDS, "max_grad_norm": 0.5, "use_lowprecision_moment": True, "weight_decay": 0.1}
    whole, shared = some_parameters(3), some_parameters(3)
    one = build_optimizer(whole, **fields)
    own = [{}, {}]
    # Each has numbers of one parameter, and they share another one; none of them begins at the first number.
    for rank, number, start, stop in ((0, 1, 0, 40), (1, 0, 0, 40), (0, 2, 0, 27), (1, 2, 27, 40)):
        name, weight = shared[number]
        own[rank][name] = weight.detach().reshape([-1])[start:stop], start
    several = [build_optimizer(shared, None, held, **fields) for held in own]
    assert [name for name, _, _ in several[0].state_items()][1:] == [
        f"{kind}.layers.{number}.weight" for kind in ("exp_avg", "exp_avg_sq", "master") for number in (1, 2)
    ]
    for update in range(3):
        give_each(whole, update)
        give_each(shared, update)
        for optimizer in several:
            optimizer.accumulate_grads()
        for name, weight in shared:
            for held in own:
                if name in held:
                    part, start = held[name]
                    part.main_grad = weight.main_grad.reshape([-1])[start : start + part.size]
        norm = one.grad_norm_and_clip()
        both = sum(optimizer.grad_norm_and_clip() ** 2 for optimizer in several)
        assert norm**2 == pytest.approx(both)
        one.step(0.01)
        for optimizer in several:
            assert optimizer.grad_norm_and_clip(total=lambda own, both=both: both) == pytest.approx(norm)
            optimizer.step(0.01)
        one.zero_grad()
        for optimizer in several:
            optimizer.zero_grad()
        assert all(part.main_grad is None for held in own for part, _ in held.values())
    for (name, alone), (_, together) in zip(whole, shared, strict=True):
        assert np.array_equal(alone.astype("float32").numpy(), together.astype("float32").numpy()), name


def test_a_gradient_that_is_counted_elsewhere_is_left_out_of_the_norm():
    named = [("a", parameter([0.0])), ("b", parameter([0.0]))]
    optimizer = build_optimizer(named, **FIELDS)
    give(named[0][1], [3.0])
    give(named[1][1], [4.0])
    assert optimizer.grad_norm_and_clip(counts=lambda name: name == "b") == 4.0
    assert optimizer.grad_norm_and_clip() == 5.0
