"""Figures of routers from records made by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest

from erniekit.train.router_stats import (
    RouterCount,
    collapse_warning,
    line,
    load_entropy,
    loads_of_processes,
    summary,
    table,
)


def count(chosen, num_experts=4, scores=None, dropped=None, bias=None, layer=2, modality=0):
    chosen = np.array(chosen)
    if scores is None:
        scores = np.full([len(chosen), num_experts], 1 / num_experts, np.float32)
    made = RouterCount(layer, modality, num_experts)
    made.add(
        chosen,
        np.array(scores, np.float32),
        np.zeros(num_experts, np.float32) if bias is None else np.array(bias, np.float32),
        dropped_Nk=None if dropped is None else np.array(dropped, bool),
    )
    return made


def test_counts_of_several_processes_are_those_of_all_tokens():
    chosen, random = np.array([[0, 1], [0, 2], [3, 1], [2, 1]]), np.random.default_rng(0)
    scores = random.random([4, 4])
    whole = count(chosen, scores=scores, dropped=[[0, 1], [0, 0], [0, 0], [1, 0]])
    first = count(chosen[:1], scores=scores[:1], dropped=[[0, 1]])
    first.take_in(count(chosen[1:], scores=scores[1:], dropped=[[0, 0], [0, 0], [1, 0]]))
    assert first.figures().token_entropy == pytest.approx(whole.figures().token_entropy)
    assert replace(first.figures(), token_entropy=0.0) == replace(whole.figures(), token_entropy=0.0)


def test_processes_compute_the_rows_of_their_experts():
    first = count([[0, 1], [0, 2], [3, 1]])
    second = count([[1, 0], [1, 3]], layer=3)
    vision = count([[5, 0], [4, 5]], num_experts=6, modality=1)
    figures = [each.figures() for each in (first, second, vision)]
    # Text: experts 0 and 1 have 4 + 3 rows, 2 and 3 have 2 + 1; vision: 0 to 2 have 1, 3 to 5 have 3.
    assert loads_of_processes(figures, 2) == {"text": [7, 3], "vision": [1, 3]}
    row = summary(figures, 2)
    assert (row["expert_processes_text"], row["expert_processes_vision"]) == ([7, 3], [1, 3])
    assert "expert_processes_text" not in summary(figures)
    assert line(figures, 2).endswith("; of 2 processes 1.40 (text), 1.50 (vision)")
    assert line(figures) == line(figures, 2).partition("; of 2")[0]


def test_by_hand():
    found = count([[0, 1], [0, 2], [0, 1]], bias=[0.1, 0.0, -0.2, 0.0]).figures()
    assert found.load == [3, 2, 1, 0]
    assert found.max_over_mean == pytest.approx(3 / 1.5)
    shares = [1 / 2, 1 / 3, 1 / 6]
    assert found.entropy == pytest.approx(-sum(p * math.log(p) for p in shares) / math.log(4))
    assert found.token_entropy == pytest.approx(1.0)
    assert found.dropped == 0 and found.num_tokens == 3 and found.top_k == 2
    assert found.bias == pytest.approx((-0.2, 0.1))
    # every token of 1 (and of 2) also chooses 0; the first such pair is told
    assert found.together == (1, 0, 1.0)


def test_micro_batches_add_up():
    whole = count([[0, 1], [0, 2], [0, 1]], scores=[[0.7, 0.1, 0.1, 0.1]] * 3)
    parts = count([[0, 1]], scores=[[0.7, 0.1, 0.1, 0.1]])
    parts.add(np.array([[0, 2], [0, 1]]), np.array([[0.7, 0.1, 0.1, 0.1]] * 2, np.float32), np.zeros(4))
    assert parts.figures().load == whole.figures().load
    assert parts.figures().token_entropy == pytest.approx(whole.figures().token_entropy, rel=1e-12)
    assert parts.figures().together == whole.figures().together


def test_a_certain_router_and_an_indifferent_one():
    certain = count([[0]], scores=[[1.0, 0.0, 0.0, 0.0]]).figures()
    assert certain.token_entropy == pytest.approx(0, abs=1e-9) and certain.together is None
    sigmoid = count([[0]], scores=[[0.9, 0.9, 0.9, 0.9]]).figures()
    assert sigmoid.token_entropy == pytest.approx(1.0)


def test_dropped_slots_are_no_load():
    found = count([[0, 1], [0, 1], [0, 1], [0, 1]], dropped=[[False, False]] * 3 + [[True, False]]).figures()
    assert found.load == [3, 4, 0, 0]
    assert found.dropped == pytest.approx(1 / 8)


@pytest.mark.parametrize(
    ("load", "expected"), [([5, 5, 5], 1.0), ([9, 0, 0], 0.0), ([0, 0], 1.0), ([3], 1.0)]
)
def test_load_entropy(load, expected):
    assert load_entropy(load) == pytest.approx(expected, abs=1e-12)


def even(num_experts, top_k, rows):
    return [[(row + j * num_experts // top_k) % num_experts for j in range(top_k)] for row in range(rows)]


@pytest.mark.parametrize(
    ("chosen", "num_experts", "collapsed"),
    [
        (even(8, 2, 64), 8, False),
        ([[0, 1]] * 64, 8, True),
        ([[0, 1]] * 2, 8, False),  # too few tokens to tell
        ([[0, 1]] * 64, 2, False),  # there is no choice
        ([[0, 1]] * 60 + [[2, 3], [4, 5], [6, 7], [0, 7]], 8, True),
        ([[0, 1]] * 40 + even(8, 2, 24), 8, False),  # uneven, but all are in use
        ([[0]] * 99 + [[1]], 8, True),
        ([[0, row % 7 + 1] for row in range(70)], 8, False),  # one expert always, the others in turn
    ],
)
def test_what_is_collapsed(chosen, num_experts, collapsed):
    figures = count(chosen, num_experts).figures()
    assert figures.is_collapsed() is collapsed
    told = collapse_warning([figures])
    assert (told is not None) is collapsed
    if told:
        assert "layer 2" in told and "moe_use_aux_free: true" in told and "moe_aux_loss_lambda" in told


def test_the_log_the_line_and_the_table():
    first = count(even(4, 2, 8)).figures()
    second = count([[0, 1], [0, 2], [0, 1]], layer=3, modality=1, bias=[0.1, 0, -0.2, 0]).figures()
    found = summary([first, second])
    assert found["router_max_over_mean"] == 2.0
    assert found["router_entropy"] == pytest.approx((1 + second.entropy) / 2, abs=1e-6)
    assert (found["router_bias_min"], found["router_bias_max"]) == (-0.2, 0.1)
    assert [row["load"] for row in found["routers"]] == [[4, 4, 4, 4], [3, 2, 1, 0]]
    assert found["routers"][1]["modality"] == "vision" and found["routers"][1]["together"] == [1, 0, 1.0]
    assert summary([]) == {}
    assert "2.00 times the mean (layer 3 (vision))" in line([first, second])
    lines = table([first, second])
    assert len(lines) == 3 and "layer 3 (vision)" in lines[2] and lines[2].endswith("1 with 0: 100%")
