"""What makes a model one of few bits while it is built or trained: only where it is asked for."""

import pytest

from erniekit.assemble import Assembled
from erniekit.errors import CheckpointError, ConfigError, UnsupportedError
from erniekit.low_precision import apply_fp8, apply_qat, check_qat, scheme_of
from erniekit.parallel.layout import Layout
from erniekit.quant.folder import Quantisation
from erniekit.testing.tiny_checkpoint import tiny_config
from tests.adapters import models


@pytest.fixture
def built():
    return Assembled(models.dense(), tiny_config(), "fp32", 0, 0)


def test_only_where_it_is_asked_for(built):
    assert apply_fp8(built, use_fp8=False) is built
    assert apply_qat(built, 10, qat_scheme=None) is built
    assert built.numbers_in_words() == "fp32"


def test_what_is_told_of_the_numbers(built):
    assert apply_qat(built, 10, qat_scheme="w8a8").numbers_in_words() == "fp32, rounded to w8a8"


def test_fp8_is_told_too(built):
    assert apply_fp8(built, use_fp8=True).numbers_in_words() == "fp32, MLPs in fp8"


def test_a_checkpoint_without_scales(built, tmp_path):
    with pytest.raises(CheckpointError, match="has no qat.json: it was not trained with qat_scheme"):
        apply_qat(built, 10, tmp_path, qat_scheme="w8a8")


def test_schemes_of_quantised_folders(tmp_path):
    weights = Quantisation("wint4", {"a.weight": "int4"})
    assert scheme_of(weights, None, tmp_path, adapted=True) == "wint4"
    with pytest.raises(ConfigError, match="is quantised already, as wint4"):
        scheme_of(weights, "wint8", tmp_path, adapted=False)
    with pytest.raises(UnsupportedError, match=r"rounds the inputs of a\.weight"):
        scheme_of(Quantisation("w8a8", {"a.weight": "w8a8"}), None, tmp_path, adapted=True)


def test_processes_that_share_matrices():
    check_qat(None, Layout(tensor=2), "stage3")
    check_qat("w8a8", Layout(data=2, sharding=2), "stage1")
    with pytest.raises(UnsupportedError, match="qat_learn_scales: true is not built for several"):
        check_qat("w8a8", Layout(data=2), "", learned=True)
    for layout, sharding in (
        (Layout(tensor=2), ""),
        (Layout(pipeline=2), ""),
        (Layout(sharding=2), "stage3"),
    ):
        with pytest.raises(UnsupportedError, match="qat_scheme: w8a8 is not built for processes that share"):
            check_qat("w8a8", layout, sharding)
