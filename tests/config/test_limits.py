"""What a configuration may hold is counted before it is built."""

import pytest
import yaml

from erniekit.config.limits import MAX_DEPTH, check_depth, check_nesting, check_nodes
from erniekit.errors import ConfigError


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def test_depth_up_to_the_limit_is_fine() -> None:
    check_nesting(nested(MAX_DEPTH), "here", yaml.SafeLoader)
    check_nodes(yaml.compose(nested(MAX_DEPTH)), "here")
    check_depth(yaml.safe_load(nested(MAX_DEPTH)), "here")


def test_one_more_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=f"here:1:{MAX_DEPTH + 1}: "):
        check_nesting(nested(MAX_DEPTH + 1), "here", yaml.SafeLoader)
    with pytest.raises(ConfigError, match="here:1:"):
        check_nodes(yaml.compose(nested(MAX_DEPTH + 1)), "here")
    with pytest.raises(ConfigError, match="here: "):
        check_depth(yaml.safe_load(nested(MAX_DEPTH + 1)), "here")
