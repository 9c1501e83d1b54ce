"""What two processes count is what one counts, also where one of them has no tokens of a router."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from erniekit.testing.distributed import run_distributed

HERE = "tests.train.test_shared_routers"
# Experts that the tokens of each process choose, for two routers; the second one is asked in one process.
CHOSEN = (([[0, 1], [2, 1]], [[3, 0]]), ([[1, 3]], None))


class Watched:
    """A companion whose routers have counted."""

    def __init__(self, rank: int) -> None:
        from erniekit.train.router_stats import RouterCount

        self.share = self.of_weights = 1.0
        self.counts = {}
        for layer, chosen in enumerate(CHOSEN[rank]):
            if chosen is not None:
                made = self.counts[layer, 0] = RouterCount(layer, 0, 4)
                made.add(np.array(chosen), np.full([len(chosen), 4], 0.25, np.float32), np.zeros(4))


def count() -> dict[str, Any]:
    import paddle

    from erniekit.parallel import comm
    from erniekit.train.shared_routers import share_routers

    world, alone = comm.open_world(), comm.Group()
    mesh = SimpleNamespace(batch=world, pipeline=alone, tensor=alone, context=world, expert=world)
    routers: Any = Watched(world.rank)
    share_routers(routers, SimpleNamespace(mesh=mesh), sequence_parallel=False)
    before = {key: made.load.tolist() for key, made in routers.counts.items()}
    whole = routers.gather(routers.counts)
    assert before == {key: made.load.tolist() for key, made in routers.counts.items()}, "own counts changed"
    return {
        "total": routers.total(paddle.to_tensor([1.0, world.rank], dtype="float64")).tolist(),
        "loads": {key: made.load.tolist() for key, made in whole.items()},
        "tokens": whole[0, 0].figures().num_tokens,
        "share": routers.share,
        "processes": routers.processes,
    }


def test_counts_are_those_of_all() -> None:
    expected = {
        "total": [2.0, 1.0],
        "loads": {(0, 0): [1, 3, 1, 1], (1, 0): [1, 0, 0, 1]},
        "tokens": 3,
        "share": 0.5,
        "processes": 2,
    }
    assert run_distributed(f"{HERE}:count", 2, timeout=240) == [expected, expected]
