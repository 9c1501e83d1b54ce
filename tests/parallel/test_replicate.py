"""Gradients summed over two replicas, for all or for owners, and updates that come back."""

from typing import Any

import numpy as np
import pytest

from erniekit.testing.distributed import run_distributed

HERE = "tests.parallel.test_replicate"
OWNERS = {"both": 0, "second only": 1, "none": 1, "frozen": 0, "large": 0}


def run(owned: bool, bucket_bytes: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The gradients of a process after they were summed, and its parameters after an update."""
    import paddle

    from erniekit.ops import gradients
    from erniekit.parallel import comm
    from erniekit.parallel.replicate import share_updates, sum_gradients

    world = comm.open_world()
    shapes = {"both": [3], "second only": [2, 2], "none": [2], "frozen": [2], "large": [40, 3]}
    parameters = {name: paddle.create_parameter(shape, "float32") for name, shape in shapes.items()}
    for parameter in parameters.values():
        parameter.set_value(np.zeros(parameter.shape, np.float32))
    parameters["frozen"].stop_gradient = True
    for name in ("both", "large"):
        (parameters[name] * float(1 + world.rank)).sum().backward()
    if world.rank == 1:
        parameters["second only"].main_grad = paddle.full([2, 2], 5.0)
    owners = OWNERS if owned else None
    sum_gradients(parameters, world, owners, bucket_bytes=bucket_bytes)
    found = {name: gradients.of(parameter) for name, parameter in parameters.items()}
    for name, gradient in found.items():
        if gradient is not None:
            parameters[name].set_value(-gradient)
    if owners is not None:
        share_updates(parameters, world, owners)
    plain = {name: None if gradient is None else gradient.numpy() for name, gradient in found.items()}
    return plain, {name: parameter.numpy() for name, parameter in parameters.items()}


@pytest.mark.parametrize("bucket_bytes", [1, 1 << 20])
@pytest.mark.parametrize("owned", [False, True])
def test_sums_and_updates(owned: bool, bucket_bytes: int) -> None:
    sums = {"both": 3.0, "second only": 5.0, "large": 3.0}
    for rank, (found, after) in enumerate(run_distributed(f"{HERE}:run", 2, owned, bucket_bytes)):
        for name, gradient in found.items():
            if name in sums and (not owned or OWNERS[name] == rank):
                assert (gradient == sums[name]).all(), (rank, name)
            else:
                assert gradient is None, (rank, name)
            # Whoever updates it, all have it.
            assert (after[name] == -sums.get(name, 0.0)).all(), (rank, name)
