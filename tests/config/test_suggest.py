"""Misspelt keys get the right suggestion."""

import random
import string

import pytest

from erniekit.config.aliases import ALIASES
from erniekit.config.keys import declared_keys, upstream_keys
from erniekit.config.suggest import SYNONYMS, edit_distance, suggest


def misspellings(key: str, random_: random.Random) -> list[str]:
    """A letter lost, doubled, added, replaced, swapped; an underscore lost or added; and the like."""
    at = random_.randrange(len(key))
    letter = random_.choice(string.ascii_lowercase)
    swap = random_.randrange(len(key) - 1)
    found = [
        key[:at] + key[at + 1 :],
        key[:at] + key[at] + key[at:],
        key[:at] + letter + key[at:],
        key[:at] + letter + key[at + 1 :],
        key[:swap] + key[swap + 1] + key[swap] + key[swap + 2 :],
        key[:at] + "_" + key[at:],
        key.replace("_", "", 1),
        key.replace("_", "-"),
        key[:-1] if key.endswith("s") else key + "s",
        key.upper(),
    ]
    return [word for word in found if word != key]


def test_at_least_95_percent_of_single_edits_are_recognised() -> None:
    random_ = random.Random(7)
    known = set(declared_keys()) | set(upstream_keys())
    right, wrong = 0, []
    for key in declared_keys():
        for word in misspellings(key, random_):
            if word in known:
                continue  # such as eval_steps for save_steps: a key of its own
            found = suggest(word)
            right += found == key
            if found != key:
                wrong.append((word, found, key))
    assert right >= 800
    assert right / (right + len(wrong)) >= 0.95, wrong


def test_upstream_keys_are_suggested_too() -> None:
    assert suggest("tensor_paralel_degree") == "tensor_parallel_degree"
    assert suggest("fuse_ropes") == "fuse_rope"


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("lr", "learning_rate"),
        ("cutoff_len", "max_seq_len"),
        ("num_epochs", "num_train_epochs"),
        ("optimizer.learning_rate", "learning_rate"),
        ("LearningRate", "learning_rate"),
        ("max-seq-len", "max_seq_len"),
        ("warmup_step", "warmup_steps"),
        ("gradient_checkpointing", "recompute"),
        ("batch", "batch_size"),
        ("per_device_batch_size", "per_device_train_batch_size"),
        ("epochs", "num_train_epochs"),
        ("model", "model_name_or_path"),
        ("output", "output_dir"),
    ],
)
def test_other_ways_to_write_a_key(word: str, key: str) -> None:
    assert suggest(word) == key


def test_what_is_near_nothing_gets_no_suggestion() -> None:
    assert suggest("zzzzqqqq") is None


def test_synonyms_are_no_keys_and_mean_keys() -> None:
    known = {*declared_keys(), *upstream_keys(), *ALIASES}
    assert set(SYNONYMS.values()) <= known
    assert not set(SYNONYMS) & known


@pytest.mark.parametrize(
    ("a", "b", "distance"), [("", "abc", 3), ("abcd", "acbd", 1), ("kitten", "sitting", 3)]
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance
