"""`erniekit version` names what a bug report needs first."""

import pytest

import erniekit
from erniekit.cli.version import run
from erniekit.errors import ConfigError
from erniekit.log import console


def test_version_names_the_versions() -> None:
    with console.capture() as capture:
        assert run([]) == 0
    assert capture.get().startswith(f"erniekit {erniekit.__version__}\npython ")
    assert "paddlepaddle" in capture.get()
    with pytest.raises(ConfigError, match="takes no words"):
        run(["now"])
