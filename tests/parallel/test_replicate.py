"""Gradients summed over two replicas, whole or in ranges, and whole tensors of ranges."""

from typing import Any

import numpy as np
import pytest

from erniekit.testing.distributed import run_distributed

pytestmark = pytest.mark.slow

HERE = "tests.parallel.test_replicate"
SHAPES = {"both": [3], "second only": [2, 2], "none": [2], "frozen": [2], "large": [41, 3], "one": [1]}
SUMS = {"both": 3.0, "second only": 5.0, "large": 3.0, "one": 3.0}


def run(ranges: bool, bucket_bytes: int, apart: bool) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The gradients of a process after they were summed, and whole tensors of its ranges of some."""
    import paddle

    from erniekit.ops import gradients
    from erniekit.parallel import comm
    from erniekit.parallel.ranges import range_of
    from erniekit.parallel.replicate import Lane, Reduction, gather_whole
    from erniekit.parallel.worker import Worker

    world, alone = comm.open_world(), comm.Group()
    parameters = {name: paddle.create_parameter(shape, "float32") for name, shape in SHAPES.items()}
    parameters["frozen"].stop_gradient = True
    lane, targets = Lane(alone, world, alone), None
    if ranges:
        lane, targets = Lane(world, alone, alone), {}
        for name, parameter in parameters.items():
            start, stop = range_of(parameter.size, world.rank, 2)
            if start < stop:
                targets[name] = paddle.full([stop - start], -1.0)
    reduction = Reduction(
        parameters, lambda name: lane, targets, Worker(apart=apart), bucket_bytes=bucket_bytes
    )
    for _ in range(2 if ranges else 1):  # ranges add up
        for name in ("both", "large", "one"):
            (parameters[name] * float(1 + world.rank)).sum().backward()
        if world.rank == 1:
            parameters["second only"].main_grad = paddle.full([2, 2], 5.0)
        reduction.add(["large", "none", "both"])
        reduction.add(["second only", "frozen", "one"])
        assert all(gradients.of(parameter) is None for parameter in parameters.values())
    reduction.finish()
    holders = parameters if targets is None else targets
    found = {name: gradients.of(holder) for name, holder in holders.items()}
    own = {
        name: paddle.arange(*range_of(parameter.size, world.rank, 2), dtype="float32")
        for name, parameter in parameters.items()
    }
    own = {name: tensor for name, tensor in own.items() if tensor.size}
    whole = gather_whole(SHAPES, own, "float32", world)
    plain = {name: None if gradient is None else gradient.numpy() for name, gradient in found.items()}
    return plain, {name: tensor.numpy() for name, tensor in whole.items()}


@pytest.mark.parametrize(("bucket_bytes", "apart"), [(1, True), (1 << 20, False)])
@pytest.mark.parametrize("ranges", [False, True])
def test_sums_and_whole_tensors(ranges: bool, bucket_bytes: int, apart: bool) -> None:
    for rank, (found, whole) in enumerate(run_distributed(f"{HERE}:run", 2, ranges, bucket_bytes, apart)):
        for name, gradient in found.items():
            size = int(np.prod(SHAPES[name]))
            if name not in SUMS:
                assert gradient is None, (rank, name)
            elif ranges:
                assert gradient.shape == ((size + 1) // 2 if rank == 0 else size // 2,), (rank, name)
                assert (gradient == 2 * SUMS[name]).all(), (rank, name)
            else:
                assert (gradient == np.full(SHAPES[name], SUMS[name])).all(), (rank, name)
        assert ("one" in found) == (not ranges or rank == 0)
        for name, shape in SHAPES.items():
            assert (whole[name] == np.arange(np.prod(shape)).reshape(shape)).all(), (rank, name)


def test_a_gradient_that_comes_after_it_was_sent_is_not_lost_in_silence() -> None:
    import paddle

    from erniekit.parallel.comm import Group
    from erniekit.parallel.replicate import Lane, Reduction

    parameter = paddle.create_parameter([3], "float32")
    reduction = Reduction({"w": parameter}, lambda name: Lane(Group(), Group(), Group()), {"w": parameter})
    parameter.sum().backward()
    reduction.add(["w"])
    parameter.sum().backward()
    with pytest.raises(AssertionError, match="w got a gradient after it was sent"):
        reduction.finish()
