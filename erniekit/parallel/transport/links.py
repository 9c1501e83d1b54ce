"""Messages between two processes, in the order in which they were sent, and a barrier made of them.

Gloo's send and receive share one counter with all collectives of a group, block until the other side
has come, and fail after 30 seconds without a way to wait longer. So point to point goes over plain
sockets, one for each direction, opened at the first message: of the Unix kind within a machine, TCP
between machines. A send is written by a thread; a peer that ends is noticed at once, one that does not
answer after `patience` seconds, and both are named.
"""

import atexit
import queue
import secrets
import socket
import struct
import threading
from collections.abc import Sequence
from typing import Any

from erniekit.errors import PeerError, RunError

_LENGTH = struct.Struct("<q")
_HELLO = struct.Struct("<16sii")  # token of the group, index of the sender, channel
_SIGNALS, _DATA = 0, 1
_FLUSH_SECONDS = 5.0
_GREETING_SECONDS = 30.0


class Links:
    """The channels of one member of a group to the others.

    Args:
        ranks: of the members in the whole run, to name them.
        index: own place among them.
        host: address to listen on for other machines; None within one machine.
        patience: seconds after which a peer that does not answer is given up.
    """

    def __init__(self, ranks: Sequence[int], index: int, *, host: str | None, patience: float) -> None:
        self.ranks, self.index, self.patience = tuple(ranks), index, patience
        self.host = host
        self._family = socket.AF_UNIX if host is None else socket.AF_INET
        self._listener = socket.socket(self._family, socket.SOCK_STREAM)
        if host is None:
            # A name without a file ("abstract"): nothing is left behind when the process is killed.
            self.address = f"erniekit-{secrets.token_hex(12)}"
            self._listener.bind(f"\0{self.address}")
        else:
            self._listener.bind((host, 0))
            self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._listener.listen(2 * len(self.ranks) + 8)
        self._listener.settimeout(patience)
        self._addresses: Sequence[str] = ()
        self._token = b""
        self._incoming: dict[tuple[int, int], socket.socket] = {}
        self._signals: dict[int, socket.socket] = {}
        self._senders: dict[int, _Sender] = {}

    def introduce(self, addresses: Sequence[str], token: bytes) -> None:
        """Tell the addresses of all members, and what their greetings begin with (16 bytes)."""
        self._addresses, self._token = addresses, token

    def send(self, to: int, data: Any, owner: Any = None) -> None:
        """Queue bytes for a member; they may not change before they are sent.

        Args:
            owner: what has to live until then.
        """
        if to not in self._senders:
            self._senders[to] = _Sender(self._connect(to, _DATA), self.ranks[to])
        self._senders[to].put(memoryview(data).cast("B"), owner)

    def receive(self, source: int) -> bytearray:
        """The next message of a member, of whatever length."""
        (size,) = _LENGTH.unpack(self._take(source, bytearray(_LENGTH.size), _DATA))
        return self._take(source, bytearray(size), _DATA)

    def receive_into(self, source: int, buffer: Any) -> None:
        """The next message of a member, which must be as long as the buffer."""
        (size,) = _LENGTH.unpack(self._take(source, bytearray(_LENGTH.size), _DATA))
        view = memoryview(buffer).cast("B")
        if size != len(view):
            raise RunError(
                f"rank {self.ranks[source]} sent {size} bytes where rank {self.ranks[self.index]} expects "
                f"{len(view)}: the two do not follow the same schedule"
            )
        self._take(source, view, _DATA)

    def barrier(self) -> None:
        """Return when all members have come: in round k every one hears of the one 2^k before it."""
        size, distance = len(self.ranks), 1
        while distance < size:
            to, source = (self.index + distance) % size, (self.index - distance) % size
            if to not in self._signals:
                self._signals[to] = self._connect(to, _SIGNALS)
            try:
                self._signals[to].sendall(b"!")
            except OSError as error:
                raise self._lost(to) from error
            self._take(source, bytearray(1), _SIGNALS)
            distance *= 2

    def flush(self) -> None:
        """Return when everything that was queued has been written."""
        for sender in self._senders.values():
            sender.flush(self.patience)

    def close(self) -> None:
        """Close everything; what is queued is lost."""
        for link in (self._listener, *self._incoming.values(), *self._signals.values()):
            link.close()
        for sender in self._senders.values():
            sender.close()

    def _connect(self, to: int, channel: int) -> socket.socket:
        link = socket.socket(self._family, socket.SOCK_STREAM)
        link.settimeout(self.patience)
        address: Any = f"\0{self._addresses[to]}"
        if self._family == socket.AF_INET:
            host, _, port = self._addresses[to].rpartition(":")
            address = (host, int(port))
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            link.connect(address)
            link.sendall(_HELLO.pack(self._token, self.index, channel))
        except OSError as error:
            link.close()
            raise self._lost(to) from error
        return link

    def _accept(self, source: int, channel: int) -> socket.socket:
        """The link from a member, taking in those of others that come before it."""
        while (source, channel) not in self._incoming:
            try:
                link, _ = self._listener.accept()
            except TimeoutError as error:
                raise self._late(source) from error
            try:
                link.settimeout(min(_GREETING_SECONDS, self.patience))
                token, index, kind = _HELLO.unpack(_read(link, bytearray(_HELLO.size)))
            except OSError:  # a peer that ended before it greeted, or a stranger who says nothing
                link.close()
                continue
            if token == self._token:
                link.settimeout(self.patience)
                self._incoming[index, kind] = link
            else:  # not one of ours
                link.close()
        return self._incoming[source, channel]

    def _take(self, source: int, buffer: Any, channel: int) -> Any:
        link = self._incoming.get((source, channel)) or self._accept(source, channel)
        try:
            return _read(link, buffer)
        except TimeoutError as error:
            raise self._late(source) from error
        except OSError as error:
            raise self._lost(source) from error

    def _lost(self, peer: int) -> PeerError:
        return PeerError(
            f"rank {self.ranks[peer]} has ended while rank {self.ranks[self.index]} waited for it"
        )

    def _late(self, peer: int) -> PeerError:
        return PeerError(
            f"rank {self.ranks[self.index]} has waited for rank {self.ranks[peer]} for {self.patience:g} s "
            "without an answer"
        )


class _Sender:
    """Writes queued messages to one peer, in order, on a thread of its own."""

    def __init__(self, link: socket.socket, rank: int) -> None:
        self._link, self._rank = link, rank
        self._queue: queue.Queue[tuple[memoryview, Any] | None] = queue.Queue()
        self._failed: OSError | None = None
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.Lock()
        self._waiting = 0
        threading.Thread(target=self._work, name=f"send-{rank}", daemon=True).start()
        atexit.register(self._idle.wait, _FLUSH_SECONDS)

    def put(self, data: memoryview, owner: Any) -> None:
        self._check()
        with self._lock:
            self._waiting += 1
            self._idle.clear()
        self._queue.put((data, owner))

    def flush(self, patience: float) -> None:
        if not self._idle.wait(patience):
            raise PeerError(f"rank {self._rank} has not taken a message for {patience:g} s")
        self._check()

    def close(self) -> None:
        self._queue.put(None)
        self._link.close()

    def _check(self) -> None:
        if self._failed is not None:
            raise PeerError(f"a message to rank {self._rank} could not be sent: {self._failed}")

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            data, _owner = item
            if self._failed is None:
                try:
                    self._link.sendall(_LENGTH.pack(len(data)))
                    self._link.sendall(data)
                except OSError as error:
                    self._failed = error
            item = data = _owner = None  # type: ignore[assignment]  # the tensor may go
            with self._lock:
                self._waiting -= 1
                if not self._waiting:
                    self._idle.set()


def _read(link: socket.socket, buffer: Any) -> Any:
    """Fill a buffer from a socket; raises ConnectionError when the other side has closed it."""
    view = memoryview(buffer)
    while len(view):
        count = link.recv_into(view)
        if not count:
            raise ConnectionError("closed by the other side")
        view = view[count:]
    return buffer
