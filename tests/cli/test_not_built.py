"""Commands that are not built yet say so and exit 2."""

import pytest

from erniekit.cli.commands import NOT_BUILT
from erniekit.cli.main import main
from erniekit.cli.not_built import run
from erniekit.errors import UnsupportedError


@pytest.mark.parametrize("command", NOT_BUILT)
def test_what_is_not_built_says_so(command: str) -> None:
    with pytest.raises(UnsupportedError, match=f"erniekit {command}: not built yet") as caught:
        run([command])
    assert caught.value.exit_code == 2
    assert main([command, "--port", "1"]) == 2
