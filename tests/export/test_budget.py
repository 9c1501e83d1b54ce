"""Formats by sensitivity: every matrix is measured, and the sum of bits is what files take."""

import numpy as np
import pytest

from erniekit.checkpoint.header import num_bytes
from erniekit.export.budget import CANDIDATES, formats_by_sensitivity
from erniekit.quant.stored import specs_of
from erniekit.testing.tiny_checkpoint import tiny_config
from tests.export.test_quantise_block import opened, quantisation


@pytest.mark.parametrize("target", [5.0, 6.0, 20.0])
def test_the_sum_of_bits_is_below_the_target(tmp_path, target):
    config = tiny_config(hidden_size=64, intermediate_size=128)
    stream = opened(tmp_path / "model", config)
    shapes = {name: tuple(p.shape) for name, p in stream.model.named_parameters()}
    formats = quantisation(config).formats
    found = formats_by_sensitivity(stream, dict(formats), target)
    assert set(found) == set(formats) and set(found.values()) <= set(CANDIDATES)
    bits = sum(
        8 * num_bytes(word, shape) for name in found for _, word, shape in specs_of(found[name], shapes[name])
    )
    assert bits <= target * sum(int(np.prod(shapes[name])) for name in found)
    if target == 20.0:
        assert set(found.values()) == {"int8"}
