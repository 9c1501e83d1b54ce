"""Routers of a model over several processes: their counts are of the whole step, their losses of it once."""

from copy import deepcopy

import paddle

from erniekit.errors import UnsupportedError
from erniekit.parallel import comm
from erniekit.parallel.differentiable import copy_to, reduce_from
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

    def average(values_E: paddle.Tensor) -> paddle.Tensor:
        weight = paddle.full([1], float(routers.counts))
        # Every process has the loss of all, so the gradient of each is theirs together.
        summed = reduce_from(copy_to(values_E * weight, batch), batch)
        return summed / comm.all_reduce(weight.clone(), batch)

    batch = spread.mesh.batch
    if routers.of_all and batch.size > 1:
        if spread.mesh.pipeline.size > 1 or routers.has_modalities():
            raise UnsupportedError(
                "global_aux_loss: true is not built for pipeline_parallel_degree and for models of two "
                "modalities, some of whose routers may have tokens in one process alone; leave it out"
            )
        routers.average = average
    routers.total, routers.gather, routers.processes = total, gather, spread.mesh.expert.size
    routers.share = 1 / spread.mesh.context.size
    if sequence_parallel:
        routers.of_weights = 1 / spread.mesh.tensor.size
