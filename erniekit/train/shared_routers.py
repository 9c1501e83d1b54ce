"""Routers of a model over several processes: their counts are of the whole step, their losses of it once."""

import paddle

from erniekit.parallel import comm
from erniekit.parallel.distribute import Distribution
from erniekit.train.routing import RouterTraining


def share_routers(routers: RouterTraining, spread: Distribution, *, sequence_parallel: bool) -> None:
    """Have `routers` count over the processes that compute other micro-batches.

    Processes that split matrices see the same tokens, or (with sequence parallelism) gather them; then
    each computes the losses of the routers' weights, of which the sum is to be one.
    """

    def total(usage_E: paddle.Tensor) -> paddle.Tensor:
        counts_E = comm.all_reduce(usage_E.astype("int64"), spread.mesh.batch)
        return counts_E.astype(usage_E.dtype)

    routers.total = total
    if sequence_parallel:
        routers.of_weights = 1 / spread.mesh.tensor.size
