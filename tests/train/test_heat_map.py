"""The picture of the experts' load."""

import xml.etree.ElementTree as ElementTree

import pytest

from erniekit.train.heat_map import colour, load_heat_map


def test_colours():
    assert colour(1.0) == "#ffffff"
    assert colour(8.0) == colour(100.0) == "#b2182b"
    assert colour(0.125) == colour(1e-9) == "#2166ac"
    assert colour(0.0) == "#777777"
    # one doubling of three: a third of the way from white
    assert colour(2.0) == "#e5b2b8"


@pytest.mark.parametrize("layers", [1, 3, 60])
def test_every_expert_of_every_router_is_there(layers):
    routers = [{"layer": i, "modality": "text", "load": [0, 3, 9]} for i in range(layers)]
    routers.append({"layer": layers, "modality": "vision", "load": [1, 1]})
    svg = load_heat_map([("step 1", routers), ("step 20", routers)])
    assert svg == load_heat_map([("step 1", routers), ("step 20", routers)])
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    cells = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert len(cells) == 2 * (3 * layers + 2)
    assert cells[2].get("fill") == colour(9 / 4) and cells[0].get("fill") == colour(0)
    bottom = float(root.get("viewBox").split()[3])
    assert max(float(cell.get("y")) + float(cell.get("height")) for cell in cells) < bottom
    texts = [text.text for text in root.iter(f"{space}text")]
    assert "step 1" in texts and "step 20" in texts and "0" in texts


def test_rows_of_panels_are_of_the_same_routers():
    """A step without tokens for vision leaves that row empty, and the others where they are named."""
    text = [{"layer": layer, "modality": "text", "load": [1, 2]} for layer in (1, 2)]
    vision = {"layer": 1, "modality": "vision", "load": [1, 1]}
    root = ElementTree.fromstring(load_heat_map([("a", text), ("b", [text[0], vision, text[1]])]))
    space = "{http://www.w3.org/2000/svg}"
    cells = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    heights = [float(cell.get("y")) for cell in cells[::2]]
    assert heights[:2] == [heights[2], heights[4]] and heights[2] < heights[3] < heights[4]
    names = [text.text for text in root.iter(f"{space}text")]
    assert names.index("1") < names.index("1 vision") < names.index("2")
    right = max(float(cell.get("x")) + float(cell.get("width")) for cell in cells)
    assert right < float(root.get("viewBox").split()[2])
