"""A tokenizer and a data file that the tests of sets and loaders share."""

import json

import numpy as np
import pytest

from tests.data.makers import json_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return json_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "train set.jsonl"
    rows = [
        {"src": "q" * int(rng.integers(1, 30)), "tgt": "answer " * int(rng.integers(1, 6))} for _ in range(53)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
