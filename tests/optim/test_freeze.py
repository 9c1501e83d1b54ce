"""What `freeze` names is not trained; what it cannot name is told."""

from types import SimpleNamespace

import pytest

from erniekit.errors import ConfigError
from erniekit.optim.freeze import apply_freeze


def model():
    parameters = {
        name: SimpleNamespace(stop_gradient=False) for name in ("embed.weight", "a.weight", "a.bias")
    }
    return SimpleNamespace(named_parameters=parameters.items, parameters=parameters)


def test_names_that_a_pattern_finds_are_frozen() -> None:
    found = model()
    assert apply_freeze(found, [r"^a\."]) == ["a.bias", "a.weight"]
    frozen = {name: parameter.stop_gradient for name, parameter in found.named_parameters()}
    assert frozen == {"embed.weight": False, "a.weight": True, "a.bias": True}
    assert apply_freeze(found, []) == []


def test_patterns_without_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="matches no parameter; names look like embed.weight"):
        apply_freeze(model(), ["^b"])
    with pytest.raises(ConfigError, match="not a regular expression"):
        apply_freeze(model(), ["("])
    with pytest.raises(ConfigError, match="freezes every parameter"):
        apply_freeze(model(), ["."])
