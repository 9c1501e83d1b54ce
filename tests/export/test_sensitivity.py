"""The picture of errors by layer."""

import xml.etree.ElementTree as ElementTree

from erniekit.export.sensitivity import kind_of, layer_of, sensitivity_figure

ERRORS = {
    "model.layers.0.self_attn.qkv_proj.weight": 1e-4,
    "model.layers.0.mlp.down_proj.weight": 1e-2,
    "model.layers.11.self_attn.qkv_proj.weight": 3e-3,
}


def test_names_fall_into_layer_and_kind():
    assert layer_of("model.layers.11.mlp.experts.down_proj.weight") == 11
    assert kind_of("model.layers.11.mlp.experts.down_proj.weight") == "mlp.experts.down_proj"


def test_it_is_an_image_of_every_matrix():
    text = sensitivity_figure(ERRORS, title="a <title>")
    root = ElementTree.fromstring(text)
    told = {node.text for node in root.iter("{http://www.w3.org/2000/svg}title")}
    assert told == {f"{name}: {error:.3g}" for name, error in ERRORS.items()}
    assert "a &lt;title&gt;" in text and "#dddddd" in text  # layer 11 has no down_proj
    assert sensitivity_figure(ERRORS, title="a <title>") == text


def test_larger_errors_are_darker():
    text = sensitivity_figure(ERRORS, title="x")
    fills = {}
    for part in text.split("<rect ")[1:]:
        if "<title>" in part:
            fills[part.split("<title>")[1].split(":")[0]] = part.split('fill="')[1][:7]
    reds = [int(fills[name][1:3], 16) for name in sorted(ERRORS, key=ERRORS.get)]
    assert reds == sorted(reds, reverse=True) and len(set(reds)) == 3


def test_one_error_alone_and_none_at_all():
    assert "1e-12" in sensitivity_figure({"model.layers.0.x.weight": 0.0}, title="x")
