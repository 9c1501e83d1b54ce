import os
import signal
import time

import pytest

from erniekit.train.signals import AGAIN_SECONDS, StopOnSignal, exit_code_of


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_waits_second_ends(number, code):
    before = signal.getsignal(number)
    with StopOnSignal() as stop:
        assert stop.received is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # once more for the group of the process
        assert stop.received == number and exit_code_of(stop.received) == code
        time.sleep(AGAIN_SECONDS)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
