"""What two processes count is what one counts, also where one of them has no tokens of a router."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from erniekit.testing.distributed import run_distributed

HERE = "tests.train.test_shared_routers"
# Experts that the tokens of each process choose, for two routers; the second one is asked in one process.
CHOSEN = (([[0, 1], [2, 1]], [[3, 0]]), ([[1, 3]], None))


class Watched:
    """A companion whose routers have counted."""

    def __init__(self, rank: int) -> None:
        from erniekit.train.router_stats import RouterCount

        self.share = self.of_weights = 1.0
        self.of_all = self.counts = True
        self.own = {}
        for layer, chosen in enumerate(CHOSEN[rank]):
            if chosen is not None:
                made = self.own[layer, 0] = RouterCount(layer, 0, 4)
                made.add(np.array(chosen), np.full([len(chosen), 4], 0.25, np.float32), np.zeros(4))

    def has_modalities(self) -> bool:
        return False


def count() -> dict[str, Any]:
    import paddle

    from erniekit.losses.router import load_balance_loss
    from erniekit.parallel import comm
    from erniekit.train.shared_routers import share_routers

    world, alone = comm.open_world(), comm.Group()
    mesh = SimpleNamespace(batch=world, pipeline=alone, tensor=alone, context=world, expert=world)
    routers: Any = Watched(world.rank)
    share_routers(routers, SimpleNamespace(mesh=mesh), sequence_parallel=False)
    global_losses = []
    for fills_up in (False, True):
        routers.counts = not (fills_up and world.rank)
        scores_NE = scores(world.rank)
        loss = load_balance_loss(scores_NE, top_k=2, average=routers.average)
        # Two micro-batches count, or one: each for its share of the step.
        (loss * (0.5 if not fills_up else float(routers.counts))).backward()
        global_losses.append((float(loss), scores_NE.grad.numpy()))
    before = {key: made.load.tolist() for key, made in routers.own.items()}
    whole = routers.gather(routers.own)
    assert before == {key: made.load.tolist() for key, made in routers.own.items()}, "own counts changed"
    return {
        "total": routers.total(paddle.to_tensor([1.0, world.rank], dtype="float64")).tolist(),
        "loads": {key: made.load.tolist() for key, made in whole.items()},
        "tokens": whole[0, 0].figures().num_tokens,
        "global": global_losses,
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
    found = run_distributed(f"{HERE}:count", 2, timeout=240)
    told = [each.pop("global") for each in found]
    assert found == [expected, expected]
    for number, ranks in enumerate(((0, 1), (0,))):
        wanted, gradients = by_hand(ranks)
        for rank in (0, 1):
            value, gradient = told[rank][number]
            assert value == pytest.approx(wanted, rel=1e-6)
            np.testing.assert_allclose(gradient, gradients[rank], rtol=1e-5, atol=1e-7)


def scores(rank: int) -> Any:
    import paddle

    drawn = np.random.default_rng(rank).normal(size=(5 + rank, 4)).astype(np.float32)
    found = paddle.nn.functional.softmax(paddle.to_tensor(drawn)).detach()
    found.stop_gradient = False
    return found


def by_hand(ranks: tuple[int, ...]) -> tuple[float, list[np.ndarray]]:
    """The loss E sum of (mean share of tokens) (mean probability) over some processes, and its gradients."""
    values = [scores(rank).numpy() for rank in (0, 1)]
    loads = [np.bincount(np.argsort(-p)[:, :2].ravel(), minlength=4) / len(p) for p in values]
    load = np.mean([loads[rank] for rank in ranks], 0)
    mean = np.mean([values[rank].mean(0) for rank in ranks], 0)
    gradients = [
        np.broadcast_to(4 * load / len(p) / len(ranks), p.shape) * float(rank in ranks)
        for rank, p in enumerate(values)
    ]
    return float(4 * (load * mean).sum()), gradients
