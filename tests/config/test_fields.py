"""Limits of a key in words."""

import pytest

from erniekit.config.fields import Rule, describe_limits


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(help="h"), ""),
        (Rule(help="h", choices=("a", "b")), "one of a, b"),
        (Rule(help="h", choices=("a",)), "a"),
        (Rule(help="h", choices=("", "a")), "one of nothing, a"),
        (Rule(help="h", minimum=1), "at least 1"),
        (Rule(help="h", above=0, maximum=1), "above 0 and at most 1"),
        (Rule(help="h", minimum=0, below=1), "at least 0 and below 1"),
        (Rule(help="h", pattern="a+", pattern_help="letters a"), "letters a"),
    ],
)
def test_limits(rule: Rule, words: str) -> None:
    assert describe_limits(rule) == words
