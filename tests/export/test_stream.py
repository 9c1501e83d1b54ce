"""Blocks one after the other: the model's own hidden states, with little in memory."""

import numpy as np
import paddle
import pytest

from erniekit.assemble import load_for_inference
from erniekit.export.calibration import arrays_of
from erniekit.export.quality import hidden_states
from erniekit.export.stream import BlockStream
from erniekit.models.ernie45.weights import open_weights
from erniekit.testing.tiny_checkpoint import tiny_config, tiny_moe_config, write_tiny_checkpoint
from tests.export.batches import batches

CONFIGS = {"dense": tiny_config, "experts": lambda: tiny_moe_config(moe_num_shared_experts=1)}


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_computes_what_the_model_does(tmp_path, kind):
    config, given = CONFIGS[kind](), batches()
    folder = write_tiny_checkpoint(tmp_path / "model", config)
    inputs = [arrays_of(batch) for batch in given]
    stream = BlockStream(config, open_weights(folder, config), inputs, compute_dtype="fp32")
    stream.start()
    for index in range(stream.num_blocks):
        stream.fill(index)
        assert all(name.startswith(stream.prefix(index)) for name in stream.matrices(index))
        assert len(stream.matrices(index)) == (4 if kind == "dense" or index == 0 else 6)
        stream.run(index, keep=False)  # changes nothing
        stream.run(index)
        stream.drop(index)
    expected = hidden_states(load_for_inference(folder, compute_type="fp32").model, given)
    for found, other in zip(stream.finish(), expected, strict=True):
        np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)


def test_one_block_is_in_memory(tmp_path):
    config = tiny_config(num_hidden_layers=4)
    folder = write_tiny_checkpoint(tmp_path / "model", config)
    inputs = [arrays_of(batch) for batch in batches()]
    stream = BlockStream(config, open_weights(folder, config), inputs, compute_dtype="fp32")
    stream.start()

    def there():
        return [name for name, parameter in stream.model.named_parameters() if parameter._is_initialized()]

    assert there() == []
    for index in range(2):
        stream.fill(index)
        assert there() and all(name.startswith(stream.prefix(index)) for name in there())
        stream.run(index)
        stream.drop(index)
    assert there() == []
    assert isinstance(stream.model, paddle.nn.Layer)
