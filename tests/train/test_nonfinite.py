import pytest

from erniekit.errors import RunError
from erniekit.train.nonfinite import NonFinitePolicy

ROWS = [f"data.jsonl:{line}" for line in range(1, 21)]
GOOD = "the last good checkpoint is out/checkpoint-3"


def accepts(policy, loss=1.0, grad_norm=1.0):
    return policy.accepts(step=7, loss=loss, grad_norm=grad_norm, origins=ROWS, last_good=GOOD)


def test_finite_steps_pass():
    assert accepts(NonFinitePolicy(on_nonfinite="stop", max_skipped_steps=0))


@pytest.mark.parametrize(
    ("loss", "grad_norm"), [(float("nan"), 1.0), (float("inf"), 1.0), (1.0, float("nan"))]
)
def test_stop_names_the_rows_and_the_checkpoint(loss, grad_norm):
    with pytest.raises(RunError) as caught:
        accepts(NonFinitePolicy(on_nonfinite="stop", max_skipped_steps=5), loss, grad_norm)
    message = str(caught.value)
    assert "step 7" in message and "data.jsonl:1," in message and "and 8 more" in message and GOOD in message


def test_skip_is_counted_and_bounded():
    policy = NonFinitePolicy(on_nonfinite="skip", max_skipped_steps=2)
    assert not accepts(policy, loss=float("nan"))
    assert not accepts(policy, loss=float("nan"))
    assert accepts(policy)
    with pytest.raises(RunError, match="max_skipped_steps: 2"):
        accepts(policy, loss=float("nan"))
    assert policy.num_skipped == 3
