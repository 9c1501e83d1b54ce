"""What config.json says of quantised numbers, and what is refused."""

import json

import pytest

from erniekit.checkpoint.files import open_tensors, write_tensors
from erniekit.errors import CheckpointError, UnsupportedError
from erniekit.models.ernie45 import plan
from erniekit.quant.folder import Quantisation, check_matrices, read_matrix, read_quantisation
from erniekit.quant.rtn import round_to_nearest
from erniekit.quant.stored import named_tensors, stacked
from tests.quant.test_stored import drawn

NAME = "model.layers.0.mlp.experts.down_proj.weight"
NAMES = {NAME: [("ernie.layers.0.mlp.experts.0.down_proj", 0), ("ernie.layers.0.mlp.experts.1.down_proj", 1)]}


def write_config(folder, found):
    (folder / "config.json").write_text(json.dumps({"quantization_config": found}))


def test_it_reads_what_it_wrote(tmp_path):
    given = Quantisation("w4a8c8", {NAME: "w4a8"}, 64, "int8", "gptq")
    content = given.to_json(plan.ROLES)
    write_config(tmp_path, content)
    assert read_quantisation(tmp_path) == given
    assert given.rotation(NAME, 96) == 32


def test_a_model_in_full_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert read_quantisation(tmp_path) is None


@pytest.mark.parametrize(
    ("found", "error", "match"),
    [
        ({"quant_method": "gptq"}, UnsupportedError, r"quantised \(gptq\), in a layout that"),
        ({"quantization": "wint8"}, UnsupportedError, r"quantised \(wint8\)"),
        ({"erniekit": {"version": 99}}, UnsupportedError, "version 99"),
        ({"erniekit": {"version": 1, "formats": {"x": "int9"}}}, CheckpointError, "damaged"),
        ({"erniekit": {"version": 1, "formats": {}, "scheme": "wint9"}}, CheckpointError, "damaged"),
    ],
)
def test_others_are_refused(tmp_path, found, error, match):
    write_config(tmp_path, found)
    with pytest.raises(error, match=match):
        read_quantisation(tmp_path)


def test_tensors_are_checked(tmp_path):
    whole = stacked([round_to_nearest(drawn(64, 6, seed=seed), "int8") for seed in range(2)])
    items = list(named_tensors(whole, NAMES[NAME]))
    write_tensors(tmp_path, items, max_shard_bytes=1 << 30, metadata={})
    tensors = open_tensors(tmp_path)
    shapes = {NAME: (2, 64, 6)}
    check_matrices(tensors, Quantisation("wint8", {NAME: "int8"}), shapes, NAMES)
    again = read_matrix(tensors, "int8", (2, 64, 6), NAMES[NAME], 0)
    assert again.numbers().tobytes() == whole.numbers().tobytes()
    with pytest.raises(CheckpointError, match=r"down_proj.quant_weight is I8 \[6, 64\], not I8 \[32, 6\]"):
        check_matrices(tensors, Quantisation("w4a8", {NAME: "w4a8"}), shapes, NAMES)
    with pytest.raises(CheckpointError, match="experts.0.down_proj.super_scales is missing"):
        check_matrices(tensors, Quantisation("wint2", {NAME: "ccq2"}), shapes, NAMES)
    with pytest.raises(CheckpointError, match="nobody.weight is no matrix"):
        check_matrices(tensors, Quantisation("wint8", {"nobody.weight": "int8"}), shapes, NAMES)
