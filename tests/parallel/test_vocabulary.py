"""A vocabulary over two processes against the plain head and embedding of one."""

from typing import Any

import numpy as np
import pytest

from erniekit.testing.distributed import run_distributed

HERE = "tests.parallel.test_vocabulary"
VOCABULARY, HIDDEN = 10, 4
# Labels in both halves, none at all, and none of one half.
LABELS = {"mixed": [7, -100, 0, 4, 5, 9, -100], "ignored": [-100, -100], "empty": [], "one half": [1, 2, 3]}


def results(head: Any, leaves: list[Any], labels: list[int], seed: int) -> dict[str, np.ndarray]:
    """What both methods of a head give, and the gradients of hidden states, weight and bias."""
    import paddle

    from erniekit.ops import gradients

    labels_N = paddle.to_tensor(np.array(labels, np.int64))
    values = np.random.default_rng(seed).normal(size=(len(labels), HIDDEN)).astype(np.float32)
    found: dict[str, np.ndarray] = {}
    for method, more in (("cross_entropy", {"scale": 0.5}), ("log_probabilities", {})):
        hidden_ND = paddle.to_tensor(values)
        hidden_ND.stop_gradient = False
        for leaf in leaves:
            gradients.clear(leaf)
        out = getattr(head, method)(hidden_ND, labels_N, chunk_tokens=3, **more)
        if method == "cross_entropy":
            out, correct = out
            found["correct"] = np.array(float(correct))
        factors = paddle.arange(1, 1 + len(labels), dtype="float32") if out.ndim else 1.0
        (out * factors).sum().backward()
        found[method] = out.detach().numpy()
        for place, leaf in enumerate([hidden_ND, *leaves]):
            gradient = gradients.of(leaf)
            found[f"{method} {place}"] = (
                np.zeros(leaf.shape, np.float32) if gradient is None else gradient.numpy().copy()
            )
    return found


def compare(transposed: bool) -> dict[str, float]:
    """In each process: the largest difference of its part from the plain head, by labels and result."""
    import paddle

    from erniekit.losses.cross_entropy import Head
    from erniekit.nn.embedding import Embedding
    from erniekit.ops import gradients
    from erniekit.parallel.comm import open_world
    from erniekit.parallel.differentiable import reduce_from
    from erniekit.parallel.vocabulary import SharedHead, shared_embedding

    world = open_world()
    random = np.random.default_rng(0)
    weight_DV = random.normal(size=(HIDDEN, VOCABULARY)).astype(np.float32)
    bias_V = random.normal(size=VOCABULARY).astype(np.float32)
    own = slice(5 * world.rank, 5 * world.rank + 5)

    def leaves_of(part: slice) -> list[Any]:
        weight = weight_DV[:, part]
        found = [paddle.to_tensor(weight.T.copy() if transposed else weight), paddle.to_tensor(bias_V[part])]
        for leaf in found:
            leaf.stop_gradient = False
        return found

    plain, shared = leaves_of(slice(0, VOCABULARY)), leaves_of(own)
    one = Head(plain[0], transposed, plain[1])
    two = SharedHead(shared[0], transposed, shared[1], world)
    found: dict[str, float] = {}
    for seed, (name, labels) in enumerate(LABELS.items()):
        expected, given = results(one, plain, labels, seed), results(two, shared, labels, seed)
        for key, value in expected.items():
            if key.endswith("1"):
                value = value[own] if transposed else value[:, own]
            if key.endswith("2"):
                value = value[own]
            assert value.shape == given[key].shape, (name, key)
            found[f"{name} {key}"] = float(np.abs(value - given[key]).max(initial=0.0))
    hidden_ND = paddle.to_tensor(random.normal(size=(3, HIDDEN)).astype(np.float32))
    found["logits"] = float((one.logits(hidden_ND) - two.logits(hidden_ND)).abs().max())
    embed = Embedding(VOCABULARY, HIDDEN, dtype="float32")
    embed.weight = paddle.create_parameter([5, HIDDEN], "float32")
    embed.weight.set_value(weight_DV.T[own].copy())
    ids = np.array([[0, 4, 5], [9, 5, 2]])
    embed.forward = shared_embedding(embed, lambda x: reduce_from(x, world), world)
    out = embed(paddle.to_tensor(ids))
    found["embedding"] = float(np.abs(out.numpy() - weight_DV.T[ids]).max())
    out.sum().backward()
    counts = np.bincount(ids.reshape(-1), minlength=VOCABULARY)[own]
    gradient = gradients.of(embed.weight)
    assert gradient is not None
    found["embedding's gradient"] = float(np.abs(gradient.numpy() - counts[:, None]).max())
    return found


@pytest.mark.parametrize("transposed", [False, True])
def test_two_halves_are_the_whole(transposed: bool) -> None:
    for found in run_distributed(f"{HERE}:compare", 2, transposed):
        assert len(found) > 30
        assert max(found.values()) < 1e-5, {name: value for name, value in found.items() if value >= 1e-5}


@pytest.mark.parametrize("columns", [16384, 12928, 10007, 24])
def test_sums_of_long_rows_lose_nothing(columns: int) -> None:
    import paddle

    from erniekit.parallel.vocabulary import row_sums

    terms = np.exp(np.random.default_rng(0).normal(-14, 2, (4, columns))).astype(np.float32)
    terms[:, 5] = 1
    exact = terms.astype(np.float64).sum(-1)
    assert row_sums(paddle.to_tensor(terms)).numpy() == pytest.approx(exact, rel=3e-6)
