"""Preference pairs of random tokens, and a tiny model for them."""

import numpy as np

from erniekit import assemble
from erniekit.data.sample import make_pair
from erniekit.train.dpo import PreferenceSettings

SETTINGS = dict(
    loss_type="sigmoid",
    beta=0.1,
    label_smoothing=0.0,
    normalize_logps=False,
    offset_alpha=0.0,
    simpo_gamma=0.5,
    dpop_lambda=50.0,
    pref_loss_ratio=1.0,
    sft_loss_ratio=0.0,
    reference_free=False,
    ref_logps="auto",
    ref_model_update_steps=-1,
)


def settings(**changes):
    return PreferenceSettings(**{**SETTINGS, **changes})


def random_pair(prompt, chosen, rejected, seed=0, score=1.0):
    """A pair of so many tokens."""
    rng = np.random.default_rng(seed)
    head = rng.integers(7, 250, prompt).tolist()
    sides = []
    for length in (chosen, rejected):
        answer = rng.integers(7, 250, length).tolist()
        sides.append((head + answer, [-100] * prompt + answer))
    return make_pair(*sides, score, f"x:{seed}")


def build(folder, **changes):
    fields = dict(
        continue_training=True,
        compute_type="fp32",
        fine_tuning="Full",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        freeze=(),
    )
    return assemble.build_model(folder, **{**fields, **changes}).model


class Fixed:
    """A reference with given numbers for each pair, by key."""

    def __init__(self, table):
        from erniekit.train.reference import CachedReference

        self._cached = CachedReference(table)

    def of(self, model, batch):
        return self._cached.of(model, batch)
