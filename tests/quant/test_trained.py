"""What training for a scheme leaves in a checkpoint."""

import json

import numpy as np
import pytest

from erniekit.errors import CheckpointError, DataError
from erniekit.quant.trained import TRAINED_FILE, TrainedScales, filled_up, read_trained

SCALES = {"a": [0.1, 0.0, float(np.float32(0.3))], "b": [0.0]}


def trained(**changes):
    return TrainedScales(
        **{"scheme": "w4a8", "step": 7, "hadamard_block_size": None, "scales": SCALES, "steps": {}, **changes}
    )


def test_it_comes_back_bit_by_bit(tmp_path):
    assert read_trained(tmp_path) is None
    trained().save(tmp_path)
    assert read_trained(tmp_path) == trained()


def test_experts_without_tokens_take_the_largest_of_the_others():
    assert filled_up(np.array([2.0, 0.0, 1.0])).tolist() == [2.0, 2.0, 1.0]
    found = trained().input_scales("a")
    assert found.dtype == np.float32 and found.tolist() == np.array([0.1, 0.3, 0.3], np.float32).tolist()
    with pytest.raises(DataError, match="b: training saw nothing that enters it"):
        trained().input_scales("b")


@pytest.mark.parametrize("changes", [{"version": 2}, {"scheme": "w1"}])
def test_of_another_erniekit(tmp_path, changes):
    trained().save(tmp_path)
    path = tmp_path / TRAINED_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(CheckpointError, match="of another ErnieKit"):
        read_trained(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", '{"version": 1, "what": 2}'])
def test_damaged(tmp_path, text):
    (tmp_path / TRAINED_FILE).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_trained(tmp_path)
