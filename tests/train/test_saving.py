import pytest

from erniekit.train.saving import SavingPlan


@pytest.mark.parametrize(("strategy", "due"), [("steps", [3, 6, 9, 10]), ("epoch", [4, 8, 10]), ("no", [10])])
def test_when_it_saves(strategy, due):
    plan = SavingPlan(save_strategy=strategy, save_steps=3, save_total_limit=None, use_async_save=False)
    assert [s for s in range(1, 11) if plan.is_due(s, steps_per_epoch=4, last=s == 10)] == due
