"""Where processes meet: the environment, and who did not come, came late or came as another."""

import socket
import threading
from collections.abc import Callable

import pytest

from erniekit.errors import ConfigError, PeerError
from erniekit.parallel.rendezvous import Store, free_port, master_endpoint, open_store, own_host, own_place

VARIABLES = (
    *("MASTER_ADDR", "MASTER_PORT", "PADDLE_MASTER", "PADDLE_TRAINER_ENDPOINTS"),
    *("PADDLE_CURRENT_ENDPOINT", "PADDLE_TRAINER_ID", "PADDLE_TRAINERS_NUM"),
)


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def at_once(*functions: Callable[[], None]) -> list[str]:
    """What each of the functions raises, run in threads of their own; "" for nothing."""
    told = [""] * len(functions)

    def work(place: int) -> None:
        try:
            functions[place]()
        except (ConfigError, PeerError) as error:
            told[place] = str(error)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return told


def stores(size: int, patience: float) -> list[Store]:
    port = free_port()
    held = [open_store("127.0.0.1", port, rank == 0, patience) for rank in range(size)]
    return [Store(rank, size, patience=patience, store=store) for rank, store in enumerate(held)]


def test_the_environment(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    assert own_place() == (0, 1) and own_host() == "127.0.0.1"
    with pytest.raises(ConfigError, match="neither PADDLE_MASTER nor MASTER_ADDR"):
        master_endpoint()
    monkeypatch.setenv("PADDLE_TRAINER_ENDPOINTS", "10.0.0.1:71,10.0.0.2:72")
    assert master_endpoint() == ("10.0.0.1", 71)
    monkeypatch.setenv("PADDLE_MASTER", "10.0.0.3:73")
    assert master_endpoint() == ("10.0.0.3", 73)
    monkeypatch.setenv("MASTER_ADDR", "node0")
    assert master_endpoint() == ("10.0.0.3", 73)
    monkeypatch.setenv("MASTER_PORT", "74")
    assert master_endpoint() == ("node0", 74)
    monkeypatch.setenv("PADDLE_CURRENT_ENDPOINT", "10.0.0.2:72")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "3")
    assert own_host() == "10.0.0.2"
    with pytest.raises(ConfigError, match="PADDLE_TRAINER_ID is 3, and PADDLE_TRAINERS_NUM 1"):
        own_place()
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "4")
    assert own_place() == (3, 4)


def test_all_present_and_alike() -> None:
    met = stores(3, 20)
    assert at_once(*(lambda s=s: s.all_present({"version": "1"}) for s in met)) == ["", "", ""]
    met[1].publish("word", "hello")
    assert met[2].read("word", 1) == "hello"


def test_another_configuration_is_named() -> None:
    met = stores(3, 20)
    told = at_once(
        *(
            lambda s=s: s.all_present({"version": "1", "configuration": "ab" if s.rank < 2 else "cd"})
            for s in met
        )
    )
    assert set(told) == {
        "rank 2 has another configuration than rank 0 (cd and ab): all processes of a run have to be "
        "started alike"
    }


def test_a_run_of_another_size_is_told() -> None:
    """A machine with fewer processes takes its rank 1 for that of the first machine."""
    met = stores(2, 20)
    met[1].size = 4
    assert at_once(lambda: met[0].publish("size", "2"), lambda: met[1].all_present({}))[1].startswith(
        "rank 0 counts 2 processes in the run, and this machine 4: nproc_per_node and NNODES"
    )


def test_absent_ranks_are_named() -> None:
    met = stores(4, 0.5)
    told = at_once(*(lambda s=s: s.all_present({}) for s in met[:2]))
    assert len(set(told)) == 1 and told[0].startswith("of 4 processes rank 2, 3 did not come within 0.5 s")
    with pytest.raises(PeerError, match="^rank 0 has waited for rank 3 for 0.5 s .word"):
        met[0].read("word/3", 3)


def test_a_first_rank_that_never_starts_is_named() -> None:
    with pytest.raises(PeerError, match="^rank 0 was not to be reached at 127.0.0.1:"):
        open_store("127.0.0.1", free_port(), False, 0.3)


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        monkeypatch.setenv("PADDLE_MASTER", f"127.0.0.1:{port}")
        with pytest.raises(ConfigError, match=f"MASTER_PORT: {port} cannot be listened on"):
            Store(0, 2, patience=0.3)
