import pytest

from erniekit.cli.options import take_options
from erniekit.errors import ConfigError


def test_options_are_parted_from_keys() -> None:
    argv = ["run.yaml", "--prompt", "a=b --raw", "--raw", "--temperature", "0.5", "top_p=1", "--system=x=y"]
    options, rest = take_options(argv, valued=("--prompt", "--system"), flags=("--raw",))
    assert options == {"--prompt": "a=b --raw", "--raw": "", "--system": "x=y"}
    assert rest == ["run.yaml", "--temperature", "0.5", "top_p=1"]


def test_missing_and_repeated_values() -> None:
    with pytest.raises(ConfigError, match="--prompt needs a value"):
        take_options(["--prompt"], valued=("--prompt",))
    with pytest.raises(ConfigError, match="given twice"):
        take_options(["--raw", "--raw"], flags=("--raw",))
