"""How the processes of a run find each other: Paddle's store, every wait bounded and every absentee named.

The environment is that of `paddle.distributed.launch`, which `erniekit train` gives to the processes that
it starts itself: PADDLE_TRAINER_ID, PADDLE_TRAINERS_NUM, PADDLE_MASTER (or MASTER_ADDR and MASTER_PORT, or
the first of PADDLE_TRAINER_ENDPOINTS), PADDLE_CURRENT_ENDPOINT.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from paddle.base import core

from erniekit.errors import ConfigError, PeerError

_POLL_SECONDS = 0.02
_HEARD_SECONDS = 5.0
_STORE_SECONDS = 900  # of Paddle's own waits, which none of ours reaches


def own_place() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    rank, size = (
        int(os.environ.get("PADDLE_TRAINER_ID", "0")),
        int(os.environ.get("PADDLE_TRAINERS_NUM", "1")),
    )
    if not 0 <= rank < size:
        raise ConfigError(f"PADDLE_TRAINER_ID is {rank}, and PADDLE_TRAINERS_NUM {size}: ranks begin at 0")
    return rank, size


def own_host() -> str:
    """Address of this machine as the other processes know it."""
    return os.environ.get("PADDLE_CURRENT_ENDPOINT", "").rpartition(":")[0] or "127.0.0.1"


def master_endpoint() -> tuple[str, int]:
    """Host and port of the store, which rank 0 holds.

    Raises:
        ConfigError: the environment does not name it.
    """
    given = os.environ
    endpoint = ":".join((given.get("MASTER_ADDR", ""), given.get("MASTER_PORT", "")))
    if endpoint.startswith(":") or endpoint.endswith(":"):
        endpoint = given.get("PADDLE_MASTER") or given.get("PADDLE_TRAINER_ENDPOINTS", "").split(",")[0]
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(
            "PADDLE_TRAINERS_NUM asks for several processes, and neither PADDLE_MASTER nor MASTER_ADDR and "
            "MASTER_PORT say where they meet (host:port of rank 0)"
        )
    return host, int(port)


class Store:
    """Values that the processes of a run tell each other.

    Args:
        patience: seconds after which a value that does not come is given up.
    """

    def __init__(
        self, rank: int, size: int, *, patience: float, store: "core.TCPStore | None" = None
    ) -> None:
        self.rank, self.size, self.patience = rank, size, patience
        if store is None and rank == 0:
            _require_free(master_endpoint()[1])
        self._store = store if store is not None else open_store(*master_endpoint(), rank == 0, patience)

    def publish(self, key: str, value: str) -> None:
        """Tell a value; a key is told once."""
        with self._held_by_rank_0(key):
            self._store.set(key, value)
            self._store.add(f"{key}?", 1)

    def read(self, key: str, rank: int) -> str:
        """The value that `rank` tells under the key; waits for it.

        Raises:
            PeerError: the rank did not tell it in time, or the store is gone.
        """
        if not self._comes(key, time.monotonic() + self.patience):
            raise PeerError(
                f"rank {self.rank} has waited for rank {rank} for {self.patience:g} s ({key.split('/')[0]})"
            )
        with self._held_by_rank_0(key):
            return bytes(self._store.get(key)).decode()

    def all_present(self, identity: Mapping[str, str]) -> None:
        """Return when every process has come with the same identity (version, configuration ...).

        Raises:
            PeerError: names the ranks that have not come in time.
            ConfigError: names the ranks that have come with another identity, and in what it differs; or
                rank 0 is of a run of another size.
        """
        self._same_size()
        self.publish(f"arrival/{self.rank}", json.dumps(dict(identity)))
        end = time.monotonic() + self.patience
        present = [rank for rank in range(self.size) if self._comes(f"arrival/{rank}", end)]
        answers = {rank: json.loads(self.read(f"arrival/{rank}", rank)) for rank in present}
        self.publish(f"heard/{self.rank}", "")
        if self.rank == 0:  # the store ends with this process, which may be about to fail
            end = time.monotonic() + _HEARD_SECONDS
            for rank in present:
                self._comes(f"heard/{rank}", end)
        absent = [rank for rank in range(self.size) if rank not in answers]
        if absent:
            raise PeerError(
                f"of {self.size} processes {_ranks(absent)} did not come within {self.patience:g} s: it "
                "never started, has ended, or cannot reach rank 0"
            )
        for key in identity:
            others = [rank for rank in range(self.size) if answers[rank].get(key) != answers[0].get(key)]
            if others:
                raise ConfigError(
                    f"{_ranks(others)} has another {key} than rank 0 ({answers[others[0]].get(key)} and "
                    f"{answers[0].get(key)}): all processes of a run have to be started alike"
                )

    def _same_size(self) -> None:
        """Machines with unequal numbers of processes would give one rank to two of them."""
        if self.rank == 0:
            self.publish("size", str(self.size))
            return
        size = int(self.read("size", 0))
        if size != self.size:
            raise ConfigError(
                f"rank 0 counts {size} processes in the run, and this machine {self.size}: nproc_per_node "
                "and NNODES have to be the same on all machines"
            )

    def _comes(self, key: str, end: float) -> bool:
        """Whether a key is told before a time of the monotonic clock."""
        pause = _POLL_SECONDS / 20
        with self._held_by_rank_0(key):
            while not self._store.add(f"{key}?", 0):
                if time.monotonic() > end:
                    return False
                time.sleep(pause)
                pause = min(_POLL_SECONDS, pause * 1.5)
        return True

    @contextmanager
    def _held_by_rank_0(self, key: str) -> Iterator[None]:
        try:
            yield
        # Which of these Paddle raises depends on where the connection broke.
        except (RuntimeError, ValueError, OSError) as error:
            raise PeerError(
                f"rank 0, which holds the store of the run, has ended ({key.split('/')[0]})"
            ) from error


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def open_store(host: str, port: int, is_master: bool, patience: float) -> "core.TCPStore":
    """A store that one process holds; Paddle's own client would wait for it without end."""
    end = time.monotonic() + patience
    while not is_master:
        try:
            socket.create_connection((host, port), timeout=max(0.1, end - time.monotonic())).close()
            break
        except OSError as error:
            if time.monotonic() > end:
                raise PeerError(
                    f"rank 0 was not to be reached at {host}:{port} within {patience:g} s ({error}): it "
                    "never started, has ended, or the address is wrong"
                ) from error
            time.sleep(_POLL_SECONDS)
    return core.TCPStore(host, port, is_master, 1, _STORE_SECONDS)


def _require_free(port: int) -> None:
    """Raises ConfigError where somebody listens on the port: Paddle would abort the process."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just been closed is free
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"MASTER_PORT: {port} cannot be listened on, on the machine of rank 0 ({error.strerror}); "
                "set a free port, the same on all machines"
            ) from error


def _ranks(ranks: list[int]) -> str:
    return f"rank {', '.join(map(str, ranks))}"
