"""The fingerprint of a model's weights: which model an adapter belongs to.

It is taken over the parameters as they are in memory, name, number type, shape and bits, so that it
does not depend on the layout of the files or on how they are split. A merge into other weights than
those trained on gives a model that is wrong without an error, which this is to prevent.
"""

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from erniekit.checkpoint.files import Item


class Fingerprint:
    """Taken while the tensors pass by."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def watch(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items, each of which enters the fingerprint."""
        for name, dtype, array in items:
            self.add(name, dtype, array)
            yield name, dtype, array

    def add(self, name: str, dtype: str, array: np.ndarray) -> None:
        """Take in one tensor."""
        self._digest.update(f"{name} {dtype} {list(array.shape)}\n".encode())
        self._digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def text(self) -> str:
        """The fingerprint of all tensors so far."""
        return f"sha256:{self._digest.hexdigest()}"
