import xml.etree.ElementTree as ElementTree

import pytest

from erniekit.train.figure import loss_figure, moving_average, shortened, thinned, ticks


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
    assert kinds.count("circle") == 2 and kinds.count("polyline") == 3
    texts = [element.text for element in root if element.text]
    assert "SFT of <a & b>" in texts and "held-out" in texts
    for element in root:
        for key in ("x", "cx", "x1"):
            assert 0 <= float(element.get(key, 0)) <= 760


def test_one_point_is_enough():
    ElementTree.fromstring(loss_figure([(1, 2.0)], [], title="x"))


def test_skipped_steps_are_left_out():
    nan, inf = float("nan"), float("inf")
    assert loss_figure([(1, 2.0), (2, nan), (3, 1.0)], [(0, inf)], title="x") == loss_figure(
        [(1, 2.0), (3, 1.0)], [], title="x"
    )


def test_a_long_run_is_a_small_file():
    points = [(step, float(step % 7)) for step in range(1, 100_001)]
    assert len(loss_figure(points, [], title="x")) < 40_000
    assert thinned([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 3.0)]
    # 1600 points: pairs.
    assert thinned([(step, step / 2) for step in range(1600)])[:2] == [(0.5, 0.25), (2.5, 1.25)]


def test_a_long_title_leaves_room_for_the_legend():
    title = shortened("SFT of /home/someone/a/rather/long/path/with/many/parts/model")
    assert len(title) <= 46 and title.startswith("SFT of /home/someone") and title.endswith("/model")
    assert shortened("SFT of starter") == "SFT of starter"
