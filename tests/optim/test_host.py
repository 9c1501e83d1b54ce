"""States that are kept aside move as those that are not; on a CPU copies stand for the way to a device."""

import numpy as np
import paddle
import pytest

from erniekit.optim import adamw
from erniekit.optim.adamw import AdamW
from erniekit.optim.host import HostMemory
from tests.optim.test_adamw import FIELDS, give_each, some_parameters

OWN = {key: value for key, value in FIELDS.items() if key not in ("optim", "learning_rate")}


def test_what_is_changed_here_is_changed_where_it_is_kept():
    host = HostMemory()
    source = paddle.arange(4, dtype="float32")
    kept = host.keep(source)
    address = kept.data_ptr()
    with host.here(kept) as (tensor,):
        tensor.add_(paddle.ones([4]))
        assert kept.tolist() == [0, 1, 2, 3]
    assert kept.tolist() == [1, 2, 3, 4] and kept.data_ptr() == address and source.tolist() == [0, 1, 2, 3]


def states_of(optimizer):
    return {name: (word, array.tobytes()) for name, word, array in optimizer.state_items()}


@pytest.mark.parametrize("narrow", [False, True])
def test_updates_are_the_same_and_one_parameter_at_a_time_is_here(narrow, monkeypatch):
    fields = {**OWN, "use_lowprecision_moment": narrow, "weight_decay": 0.1}
    here, most = [0], [0]
    original = HostMemory.here

    class Counted(HostMemory):
        def here(self, *kept):
            here.append(len(kept))
            most.append(max(one.size for one in kept))
            return original(self, *kept)

    plain, aside = some_parameters(3), some_parameters(3)
    # As on a device that is no CPU: its updates are Paddle's own operators.
    monkeypatch.setattr(adamw, "on_cpu", lambda: False)
    monkeypatch.setattr(adamw, "current_backend", lambda: "gpu")
    monkeypatch.setattr(adamw, "HostMemory", Counted)
    one = AdamW(plain, **fields)
    two = AdamW(aside, offload_optim=True, **fields)
    for update in range(3):
        for named, optimizer in ((plain, one), (aside, two)):
            give_each(named, update)
            optimizer.grad_norm_and_clip()
            optimizer.step(0.01)
            optimizer.zero_grad()
    assert max(here) == 2 and max(most) == 40 and len(here) == 1 + 3 * 3 * 2
    for (_, expected), (_, found) in zip(plain, aside, strict=True):
        assert np.array_equal(expected.astype("float32").numpy(), found.astype("float32").numpy())
    assert states_of(one) == states_of(two)


def test_on_a_cpu_nothing_is_to_be_done():
    optimizer = AdamW(some_parameters(1), offload_optim=True, **OWN)
    assert optimizer._host is None
