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
