import xml.etree.ElementTree as ElementTree

import pytest

from erniekit.train.figure import loss_figure, moving_average, ticks


def test_the_moving_average_has_no_bias_at_its_start():
    assert moving_average([(1, 4.0), (2, 4.0)], 0.9) == [(1, pytest.approx(4.0)), (2, pytest.approx(4.0))]
    # Weights 0.1 * 0.9 and 0.1, normalised.
    assert moving_average([(1, 1.0), (2, 2.0)], 0.9)[1][1] == pytest.approx((0.09 * 1 + 0.1 * 2) / 0.19)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.7, 2.3), (3, 4000), (2.0, 2.0), (1e-5, 3e-5)])
def test_ticks_are_round_and_enclose(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high and len(found) <= 12
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in zip(found, found[1:], strict=False)}
    assert steps == ({1.0} if low < high else set())


def test_the_figure_is_valid_repeats_and_shows_everything():
    train, held_out = [(step, 5.0 / step) for step in range(1, 30)], [(0, 5.5), (29, 1.0)]
    svg = loss_figure(train, held_out, title="SFT of <a & b>")
    assert svg == loss_figure(train, held_out, title="SFT of <a & b>")
    root = ElementTree.fromstring(svg)
    kinds = [element.tag.split("}")[1] for element in root]
    assert kinds.count("circle") == 2 and kinds.count("polyline") == 2
    texts = [element.text for element in root if element.text]
    assert "SFT of <a & b>" in texts and "held-out" in texts
    for element in root:
        for key in ("x", "cx", "x1"):
            assert 0 <= float(element.get(key, 0)) <= 760


def test_one_point_is_enough():
    ElementTree.fromstring(loss_figure([(1, 2.0)], [], title="x"))
