"""Gradients of replicas: summed over the processes that computed them, many tensors at a time.

Every process adds up the gradients of its own micro-batches, scaled for the whole step already; their
sum is the gradient of the step. With owners (ZeRO, Rajbhandari et al. 2020: stages 1 and 2) a gradient
goes to the process that updates its parameter and is forgotten elsewhere, and the updated parameter
comes back from there.

Which parameters have a gradient at all is asked first: an expert that had no token in one replica may
have had some in another, and one without any in all of them is not to be updated, as in one process.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle

from erniekit.ops import gradients
from erniekit.parallel import comm

BUCKET_BYTES = 64 << 20


@paddle.no_grad()
def sum_gradients(
    parameters: Mapping[str, Any],
    group: comm.Group,
    owners: Mapping[str, int] | None = None,
    *,
    bucket_bytes: int = BUCKET_BYTES,
) -> None:
    """Replace the gradients of trained parameters by their sums over a group, in fp32.

    Args:
        owners: the process of the group that is to have each sum; None for all of them.
        bucket_bytes: of the gradients that are exchanged in one message.
    """
    trained = {name: p for name, p in parameters.items() if not p.stop_gradient}
    found = {name: gradients.of(parameter) for name, parameter in trained.items()}
    present = paddle.to_tensor(np.array([g is not None for g in found.values()], np.int64))
    comm.all_reduce(present, group)
    names = [name for name, count in zip(found, present.tolist(), strict=True) if count]
    for bucket in _buckets(names, trained, owners, bucket_bytes):
        flat = paddle.concat([_flat(found.pop(name), trained[name]) for name in bucket])
        owner = None if owners is None else owners[bucket[0]]
        comm.all_reduce(flat, group)
        begin = 0
        for name in bucket:
            parameter = trained[name]
            gradients.clear(parameter)
            end = begin + parameter.size
            if owner is None or owner == group.rank:
                parameter.main_grad = flat[begin:end].reshape(parameter.shape)
            begin = end


@paddle.no_grad()
def share_updates(parameters: Mapping[str, Any], group: comm.Group, owners: Mapping[str, int]) -> None:
    """Have every process of a group take over the trained parameters from their owners."""
    for name, parameter in parameters.items():
        if not parameter.stop_gradient:
            comm.broadcast(parameter, group, owners[name])


def _buckets(
    names: Sequence[str], parameters: Mapping[str, Any], owners: Mapping[str, int] | None, limit: int
) -> Iterator[list[str]]:
    """Names whose gradients travel together: of one owner, in the order of the backward pass."""
    kinds = [None] if owners is None else sorted(set(owners.values()))
    for kind in kinds:
        bucket: list[str] = []
        held = 0
        for name in reversed(names):
            if owners is not None and owners[name] != kind:
                continue
            needed = 4 * parameters[name].size
            if bucket and held + needed > limit:
                yield bucket
                bucket, held = [], 0
            bucket.append(name)
            held += needed
        if bucket:
            yield bucket


def _flat(gradient: paddle.Tensor | None, parameter: Any) -> paddle.Tensor:
    if gradient is None:
        return paddle.zeros([parameter.size], dtype="float32")
    return gradient.reshape([-1])
