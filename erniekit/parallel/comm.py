"""The one seam of collectives: what a process says to others, and how many bytes that is.

A `Group` is the processes along one axis of the mesh; a group of one needs nobody, and every collective
on it is the identity. How bytes travel is chosen when a group is opened: NCCL on GPUs, memory that the
processes share on one machine without, gloo between such machines.

All members of a group have to make the same calls in the same order; where the transport can see that
they do not, it says so. Nothing here is seen by automatic differentiation: `differentiable.py` has the
collectives with gradients.
"""

import json
import pickle
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import paddle

from erniekit.parallel.rendezvous import Store, free_port, open_store, own_host, own_place
from erniekit.parallel.transport.links import Links
from erniekit.parallel.transport.memory_views import bytes_of, num_bytes

PATIENCE_SECONDS = 600.0

traffic: Counter[tuple[str, str]] = Counter()
"""Bytes that this process has sent, by (name of the group, operation).

What counts is the payload in the ring algorithms, in which every byte travels as seldom as it can: of n
members, each sends 2 (n - 1)/n of the tensor in an all-reduce, (n - 1)/n of the whole input in a
reduce-scatter, n - 1 times its own part in an all-gather, the rows for others in an all-to-all, and a
message or a broadcast counts where it begins. Objects and barriers do not count.
"""


@dataclass(frozen=True)
class Group:
    """Processes that communicate.

    Args:
        ranks: of the members in the whole run, in their order here.
        rank: place of this process among them; -1 when it is none of them.
        name: of the axis, under which traffic is counted.
    """

    ranks: tuple[int, ...] = (0,)
    rank: int = 0
    name: str = "world"
    transport: Any = field(default=None, repr=False, compare=False)
    links: Links | None = field(default=None, repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of members."""
        return len(self.ranks)


@dataclass
class _World:
    """What this process keeps of the run.

    Args:
        links: over which groups are agreed on once all processes know each other; a word through the store
            takes Paddle a tenth of a second, and every group needs several.
    """

    store: Store
    on_gpu: bool
    links: Links | None = None
    opened: Counter[str] = field(default_factory=Counter)


_world: _World | None = None


def open_world(*, identity: Mapping[str, str] | None = None, patience: float = PATIENCE_SECONDS) -> Group:
    """Meet the other processes of the run; once in a process, before any other call.

    Args:
        identity: what has to be equal in all of them (version, digest of the configuration ...).
        patience: seconds to wait for a process, here and in every later wait.

    Raises:
        PeerError: processes did not come; they are named.
        ConfigError: processes came with another identity; they are named.
    """
    global _world
    rank, size = own_place()
    if size == 1:
        return Group()
    on_gpu = str(paddle.get_device()).startswith("gpu")
    shared = None
    if on_gpu:  # not executed in this project's CI
        paddle.distributed.init_parallel_env()
        shared = paddle.base.core.create_or_get_global_tcp_store()
    store = Store(rank, size, patience=patience, store=shared)
    store.all_present(identity or {})
    _world = _World(store, on_gpu)
    world = open_group(range(size), "world")
    if world.links is not None:
        links = Links(world.ranks, rank, host=world.links.host, patience=patience)
        token = broadcast_object(secrets.token_bytes(16), world)
        links.introduce(gather_objects(links.address, world), token)
        _world.links = links
    return world


def open_group(ranks: Sequence[int], name: str, *, transport: str = "auto") -> Group:
    """Open a group; every member calls this, all in the same order of their groups.

    Args:
        ranks: of the members, in the order that their indices are to have.
        transport: auto, or one of shared_memory and gloo to insist on it.
    """
    mine, members = own_place()[0], tuple(ranks)
    index = members.index(mine) if mine in members else -1
    if index < 0 or len(members) == 1:
        return Group(members, index, name)
    assert _world is not None, "open_world comes before open_group"
    label = f"{name}/{'-'.join(map(str, members))}"
    _world.opened[label] += 1
    prefix = f"{label}/{_world.opened[label]}"
    if _world.on_gpu:
        return Group(members, index, name, _open_nccl(prefix, members, index))
    if transport == "auto":
        from erniekit.parallel.transport.shared_memory import machine_of_process

        machines = _tell(f"{prefix}/machine", machine_of_process(), members, index)
        transport = "shared_memory" if len(set(machines)) == 1 else "gloo"
    local = transport == "shared_memory"
    links = Links(members, index, host=None if local else own_host(), patience=_world.store.patience)
    token = _tell(f"{prefix}/token", secrets.token_hex(16), members, index)[0]
    if local:
        from erniekit.parallel.transport.shared_memory import SharedMemory

        memory = SharedMemory(links)
        told = _tell(f"{prefix}/address", json.dumps([links.address, memory.address]), members, index)
        addresses, pieces = zip(*map(json.loads, told), strict=True)
        links.introduce(addresses, bytes.fromhex(token))
        memory.introduce(pieces)
        links.barrier()
        return Group(members, index, name, memory, links)
    links.introduce(_tell(f"{prefix}/address", links.address, members, index), bytes.fromhex(token))
    from erniekit.parallel.transport.gloo import Gloo

    return Group(members, index, name, Gloo(links, _own_store(prefix, members, index), prefix), links)


def _own_store(prefix: str, members: tuple[int, ...], index: int) -> "paddle.base.core.TCPStore":
    """A store of the group alone, held by its first member."""
    assert _world is not None
    own, endpoint = None, ""
    if index == 0:
        host, port = own_host(), free_port()
        own = open_store(host, port, True, _world.store.patience)
        endpoint = f"{host}:{port}"
    host, _, word = _tell(f"{prefix}/store", endpoint, members, index)[0].rpartition(":")
    return own or open_store(host, int(word), False, _world.store.patience)


def _open_nccl(prefix: str, members: tuple[int, ...], index: int) -> Any:
    """A group with a store of its own, so that only its members have to make the call. Not executed in CI."""
    from paddle.distributed.communication.group import Group as PaddleGroup

    from erniekit.parallel.transport.nccl import Nccl

    assert _world is not None
    own = _own_store(prefix, members, index)
    number = 100 + sum(_world.opened.values())
    process_group = paddle.base.core.ProcessGroupNCCL.create(
        own, index, len(members), number, int(_world.store.patience * 1000), 0, None
    )
    return Nccl(PaddleGroup(index, number, list(members), process_group, prefix), own)


def _tell(key: str, value: str, members: Sequence[int], index: int) -> list[str]:
    """Tell all members a value; returns those of all."""
    assert _world is not None
    links = _world.links
    if links is not None:
        others = [rank for rank in members if rank != members[index]]
        for rank in others:
            links.send(rank, value.encode())
        told = {rank: links.receive(rank).decode() for rank in others}
        return [told.get(rank, value) for rank in members]
    _world.store.publish(f"{key}/{index}", value)
    return [_world.store.read(f"{key}/{place}", rank) for place, rank in enumerate(members)]


def all_reduce(tensor: paddle.Tensor, group: Group, op: str = "sum") -> paddle.Tensor:
    """Sum, maximum or minimum (`sum`, `max`, `min`) over the members, in place; returns the tensor."""
    if group.size > 1:
        _count(group, "all_reduce", 2 * (group.size - 1) * num_bytes(tensor) // group.size)
        whole = tensor.contiguous()
        group.transport.all_reduce(whole, op)
        if not tensor.is_contiguous():
            paddle.assign(whole, tensor)
    return tensor


def all_gather(tensor: paddle.Tensor, group: Group) -> paddle.Tensor:
    """The tensors of all members, equally shaped, one after the other along the first axis."""
    if group.size == 1:
        return tensor
    _count(group, "all_gather", (group.size - 1) * num_bytes(tensor))
    return group.transport.all_gather(tensor.contiguous())


def all_gather_unequal(tensor: paddle.Tensor, group: Group) -> list[paddle.Tensor]:
    """The tensors of all members, which may differ in the first axis and be empty."""
    if group.size == 1:
        return [tensor]
    _count(group, "all_gather", (group.size - 1) * num_bytes(tensor))
    return group.transport.all_gather_unequal(tensor.contiguous())


def reduce_scatter(tensor: paddle.Tensor, group: Group) -> paddle.Tensor:
    """The own part, along the first axis, of the sum over the members."""
    if group.size == 1:
        return tensor
    assert tensor.shape[0] % group.size == 0, f"{tensor.shape[0]} rows over {group.size} members"
    _count(group, "reduce_scatter", (group.size - 1) * num_bytes(tensor) // group.size)
    return group.transport.reduce_scatter(tensor.contiguous())


def all_to_all(
    tensor: paddle.Tensor, send_counts: Sequence[int], recv_counts: Sequence[int], group: Group
) -> paddle.Tensor:
    """Rows for each member out of `tensor`, in the order of the members; returns theirs for this one.

    Args:
        send_counts: rows for each member; they add up to the rows of the tensor.
        recv_counts: rows from each member.
    """
    assert sum(send_counts) == tensor.shape[0], f"{send_counts} do not add up to {tensor.shape[0]} rows"
    if group.size == 1:
        return tensor
    row = num_bytes(tensor) // tensor.shape[0] if tensor.shape[0] else 0
    _count(group, "all_to_all", (tensor.shape[0] - send_counts[group.rank]) * row)
    return group.transport.all_to_all(tensor.contiguous(), send_counts, recv_counts)


def broadcast(tensor: paddle.Tensor, group: Group, source: int = 0) -> paddle.Tensor:
    """Give all members the tensor of one, in place; returns it."""
    if group.size > 1:
        _count(group, "broadcast", num_bytes(tensor) if group.rank == source else 0)
        whole = tensor.contiguous()
        group.transport.broadcast(whole, source)
        if not tensor.is_contiguous():
            paddle.assign(whole, tensor)
    return tensor


def send(tensor: paddle.Tensor, group: Group, to: int) -> None:
    """Send a tensor to a member, who receives in the same order; returns at once.

    The tensor may not be written in place before the member has taken it (or `flush`).
    """
    _count(group, "send", num_bytes(tensor))
    whole = tensor.contiguous()
    if group.links is None:
        group.transport.send(whole, to)
    else:
        group.links.send(to, bytes_of(whole), whole)


def receive(shape: Sequence[int], dtype: str | paddle.dtype, group: Group, source: int) -> paddle.Tensor:
    """The next tensor that a member sends here, of a shape and type that are known."""
    out = paddle.empty(list(shape), dtype=dtype)
    if group.links is None:
        group.transport.receive(out, source)
    else:
        group.links.receive_into(source, bytes_of(out))
    return out


def flush(group: Group) -> None:
    """Return when everything that was sent to members of the group has been written."""
    if group.links is not None:
        group.links.flush()


def gather_objects(value: Any, group: Group) -> list[Any]:
    """What every member gives, any object of Python; all get all."""
    if group.size == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    return [pickle.loads(part.numpy().tobytes()) for part in _gather_bytes(data, group)]


def broadcast_object(value: Any, group: Group, source: int = 0) -> Any:
    """What one member gives, any object of Python; the values of the others are ignored."""
    if group.size == 1:
        return value
    data = pickle.dumps(value) if group.rank == source else b""
    return pickle.loads(_gather_bytes(np.frombuffer(data, np.uint8), group)[source].numpy().tobytes())


def barrier(group: Group) -> None:
    """Return when all members have come."""
    if group.size > 1:
        group.transport.barrier()


def take_traffic() -> dict[tuple[str, str], int]:
    """The bytes counted since the last call, by (name of the group, operation); counting begins anew."""
    taken = dict(traffic)
    traffic.clear()
    return taken


def _gather_bytes(data: np.ndarray, group: Group) -> list[paddle.Tensor]:
    return group.transport.all_gather_unequal(paddle.to_tensor(data))


def _count(group: Group, operation: str, size: int) -> None:
    traffic[group.name, operation] += size
