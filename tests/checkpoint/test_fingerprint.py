"""A fingerprint changes with any bit, name, type or shape, and with nothing else."""

import numpy as np
import pytest

from erniekit.checkpoint.fingerprint import Fingerprint

ITEM = ("w", "F32", np.arange(6, dtype=np.float32).reshape(2, 3))


def of(*items) -> str:
    fingerprint = Fingerprint()
    assert len(list(fingerprint.watch(items))) == len(items)
    return fingerprint.text()


@pytest.mark.parametrize(
    "other",
    [
        ("v", *ITEM[1:]),
        ("w", "F16", ITEM[2]),
        ("w", "F32", ITEM[2].reshape(3, 2)),
        ("w", "F32", np.nextafter(ITEM[2], 9)),
    ],
)
def test_it_changes(other) -> None:
    assert of(ITEM) != of(other)


def test_it_repeats() -> None:
    turned = np.asfortranarray(ITEM[2])
    assert of(ITEM) == of(("w", "F32", turned)) and of(ITEM).startswith("sha256:")
    assert of(ITEM, ITEM) != of(ITEM)
