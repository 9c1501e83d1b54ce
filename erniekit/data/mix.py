"""Several data sets as one: which row comes when.

With sets of n_i rows and shares p_i (normalised; by size when none are given), an epoch is

    concat             every row of every set once, shuffled over all when shuffling is on
    random             as many rows as there are in all (or num_samples_each_epoch), each drawn from
                       set i with probability p_i, without repeating a row before its set is used up
    interleave_under   sets in turn by their shares until the first one is used up
    interleave_over    sets in turn by their shares until every one was used up; short ones repeat

With one set all four are: every row once.
"""

import numpy as np

from erniekit.errors import ConfigError

_LONGEST_EPOCH = 10**9
STRATEGIES = ("concat", "random", "interleave_under", "interleave_over")


def epoch_order(
    sizes: list[int],
    shares: list[float] | None,
    *,
    mix_strategy: str,
    num_samples: int | None,
    shuffle: bool,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """Rows of an epoch as int64 [N, 2]: number of the set, number of the row in it.

    The same arguments give the same order.
    """
    assert mix_strategy in STRATEGIES, mix_strategy
    rng = np.random.default_rng([seed, epoch])
    total = num_samples or sum(sizes)
    if mix_strategy == "concat" or len(sizes) == 1:
        return _concatenated(sizes, num_samples, shuffle, rng)
    weights = np.array(shares if shares is not None else sizes, dtype=np.float64)
    weights = weights / weights.sum()
    if mix_strategy == "random":
        draws = rng.choice(len(sizes), size=total, p=weights)
    else:
        draws = _in_turn(sizes, weights, until_all=mix_strategy == "interleave_over")
        if num_samples is not None:
            draws = np.resize(draws, num_samples)
    rows = np.empty((len(draws), 2), dtype=np.int64)
    rows[:, 0] = draws
    for index, size in enumerate(sizes):
        places = np.flatnonzero(draws == index)
        rows[places, 1] = _rounds(size, len(places), shuffle, rng)
    return rows


def parse_shares(text: str | None, num_sets: int, key: str) -> list[float] | None:
    """Shares from a comma list.

    Raises:
        ConfigError: not numbers, not one for each set, or none above 0.
    """
    if text is None:
        return None
    try:
        shares = [float(part) for part in str(text).split(",")]
    except ValueError as error:
        raise ConfigError(f"{key}: {text!r} is no comma list of numbers such as 0.8,0.2") from error
    if len(shares) != num_sets:
        raise ConfigError(f"{key}: {len(shares)} shares for {num_sets} data sets; write one for each")
    if min(shares) < 0 or not 0 < sum(shares) < float("inf"):
        raise ConfigError(f"{key}: {text!r}; shares must be 0 or above, and one of them above")
    return shares


def _concatenated(sizes: list[int], limit: int | None, shuffle: bool, rng: np.random.Generator) -> np.ndarray:
    sets = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.concatenate([np.arange(size) for size in sizes])
    order = np.stack([sets, rows], axis=1).astype(np.int64)
    if shuffle:
        order = order[rng.permutation(len(order))]
    return order if limit is None else np.resize(order, (limit, 2))


def _in_turn(sizes: list[int], weights: np.ndarray, *, until_all: bool) -> np.ndarray:
    """The set of each draw: row k of set i is due at (k + 1/2) / p_i, and the rows come as they are due."""
    drawn = [index for index, weight in enumerate(weights) if weight > 0]
    last = {index: (sizes[index] - 0.5) / weights[index] for index in drawn}
    end = max(last.values()) if until_all else min(last.values())
    counts = {index: int(end * weights[index] + 0.5 + 1e-9) for index in drawn}
    total = sum(counts.values())
    if total > _LONGEST_EPOCH:
        raise ConfigError(
            f"mix_strategy: interleave_over with these shares repeats small sets until an epoch has "
            f"{total:.2g} rows; raise the smallest share, or use interleave_under or random"
        )
    sets = np.repeat(drawn, [counts[index] for index in drawn])
    due = np.concatenate([(np.arange(counts[index]) + 0.5) / weights[index] for index in drawn])
    draws = sets[np.argsort(due, kind="stable")]
    if until_all:
        return draws
    # Sets that are due at the same moment as the one that is used up may stand behind it.
    finished = [
        np.flatnonzero(draws == index)[sizes[index] - 1] for index in drawn if counts[index] >= sizes[index]
    ]
    return draws[: min(finished) + 1]


def _rounds(size: int, count: int, shuffle: bool, rng: np.random.Generator) -> np.ndarray:
    """`count` row numbers of a set of `size`, each round over the set in a fresh order."""
    rounds = [rng.permutation(size) if shuffle else np.arange(size) for _ in range(-(-count // size))]
    return np.concatenate(rounds)[:count] if rounds else np.empty(0, dtype=np.int64)
