"""Routers of a model over several processes: their counts are of the whole step, their losses of it once."""

from copy import deepcopy

import paddle

from erniekit.parallel import comm
from erniekit.parallel.distribute import Distribution
from erniekit.train.routing import Counts, RouterTraining


def share_routers(routers: RouterTraining, spread: Distribution, *, sequence_parallel: bool) -> None:
    """Have `routers` count over the processes that compute other micro-batches.

    Processes that split matrices see the same tokens, or (with sequence parallelism) gather them; then
    each computes the losses of the routers' weights, of which the sum is to be one. Processes that share
    columns gather them too, and each counts for its share of every loss.
    """

    def total(usage_E: paddle.Tensor) -> paddle.Tensor:
        counts_E = comm.all_reduce(usage_E.astype("int64"), spread.mesh.batch)
        return counts_E.astype(usage_E.dtype)

    def gather(counts: Counts) -> Counts:
        # Processes that split matrices count the same tokens: the first of them tells.
        found: Counts = deepcopy(counts) if spread.mesh.tensor.rank == 0 else {}
        for group in (spread.mesh.batch, spread.mesh.pipeline):
            parts = comm.gather_objects(found, group)
            found = {}
            for key, count in (item for part in parts for item in part.items()):
                if key in found:
                    found[key].take_in(count)
                else:
                    found[key] = count
        return found

    routers.total, routers.gather, routers.processes = total, gather, spread.mesh.expert.size
    routers.share = 1 / spread.mesh.context.size
    if sequence_parallel:
        routers.of_weights = 1 / spread.mesh.tensor.size
