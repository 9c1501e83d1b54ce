from types import SimpleNamespace

import pytest

from erniekit.train.dropout import DropoutWarmup


@pytest.mark.parametrize(
    ("steps", "expected"), [(0, []), (4, [(0.1, 0.2), (0.2, 0.4), (0.4, 0.8), (0.4, 0.8)])]
)
def test_it_rises_linearly(steps, expected):
    seen = []
    model = SimpleNamespace(set_dropout=lambda hidden, attention: seen.append((hidden, attention)))
    warmup = DropoutWarmup(model, 0.4, 0.8, dropout_warmup_steps=steps)
    for step in (1, 2, 4, 9):
        warmup.begin_step(step)
    assert [(round(h, 6), round(a, 6)) for h, a in seen] == expected
