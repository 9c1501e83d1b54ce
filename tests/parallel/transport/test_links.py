"""Messages and barriers between members that live in one process here, on both kinds of sockets."""

import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from erniekit.errors import PeerError, RunError
from erniekit.parallel.transport import links as links_module
from erniekit.parallel.transport.links import Links


def members(size: int, host: str | None, patience: float = 20) -> list[Links]:
    made = [Links(range(10, 10 + size), index, host=host, patience=patience) for index in range(size)]
    for links in made:
        links.introduce([one.address for one in made], b"t" * 16)
    return made


def at_once(*functions: Callable[[], Any]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("host", [None, "127.0.0.1"])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_messages_in_order_and_barriers(size: int, host: str | None) -> None:
    made = members(size, host)
    came, left = [0] * 20, list[object]()

    def work(mine: Links) -> None:
        for turn in range(20):
            time.sleep(0.001 * (mine.index == turn % size))
            came[turn] += 1
            mine.barrier()
            left.append(came[turn] == size)
        for other in range(size):
            for length in (0, 5, 3_000_000):
                mine.send(other, bytes([mine.index]) * length)
        for other in range(size):
            assert mine.receive(other) == b""
            buffer = bytearray(5)
            mine.receive_into(other, buffer)
            assert buffer == bytes([other]) * 5
            assert mine.receive(other) == bytes([other]) * 3_000_000
        mine.flush()
        left.append("done")

    at_once(*(lambda mine=mine: work(mine) for mine in made))
    assert all(left) and len(left) == 21 * size and left.count("done") == size
    for links in made:
        links.close()


def test_what_goes_wrong_names_the_rank() -> None:
    one, two = members(2, None, patience=0.3)
    with pytest.raises(PeerError, match="rank 10 has waited for rank 11 for 0.3 s"):
        one.barrier()
    one.send(1, b"123")
    with pytest.raises(RunError, match="rank 10 sent 3 bytes where rank 11 expects 2"):
        two.receive_into(0, bytearray(2))
    one.flush()
    two.send(0, b"1")
    assert one.receive(1) == b"1"
    two.close()
    with pytest.raises(PeerError, match="rank 11 has ended while rank 10 waited for it"):
        one.receive(1)
    one.close()


def test_a_stranger_is_not_let_in() -> None:
    one, two, stranger = members(3, "127.0.0.1")
    stranger.introduce([one.address, two.address, ""], b"x" * 16)
    stranger.send(0, b"wrong")
    stranger.flush()
    two.send(0, b"right")
    assert one.receive(1) == b"right"
    for links in (one, two, stranger):
        links.close()


def test_a_stranger_who_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "_GREETING_SECONDS", 0.2)
    one, two = members(2, "127.0.0.1", patience=60)
    host, _, port = one.address.rpartition(":")
    began = time.monotonic()
    with socket.create_connection((host, int(port))):
        two.send(0, b"right")
        assert one.receive(1) == b"right"
    assert time.monotonic() - began < 50
    for links in (one, two):
        links.close()
