"""The processes of a run: who they are, how they are arranged, and what they decide and add up together.

    torchrun ─ RANK, WORLD_SIZE ─▶ World ─ mesh: replicate × shard × expert × tensor ranks
                                             └───── data ranks, which read different rows

Unusual here: a mistake that one rank alone sees is voted on before anybody raises (`together`), so that all ranks leave
with the same message and none waits for another that is gone. Messages travel through torchrun's key-value store as
text, nothing is pickled. One process alone (`World.alone`) has no process group, and every method of it is free.
"""

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from gptrs.train.config import ParallelSettings, Sizes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
NAMES = ("replicate", "shard", "expert", "tensor")  # dimensions of the mesh; ranks along the last are neighbours
_POLL_S = 0.05  # between questions whether rank 0 has prepared, for as long as it takes: raw text takes hours


class PlaceError(ValueError):
    """Torchrun's variables do not say which rank this is, so no other one tells of it."""

    on_each_rank = True


class MainMissingError(OSError):
    """Rank 0 is not there to say what went wrong, so every rank does."""

    on_each_rank = True  # for who prints


class Env(Protocol):
    """Environment variables, as torchrun sets them."""

    def get(self, name: str, default: str, /) -> str: ...
    def __contains__(self, name: object, /) -> bool: ...


@dataclass(kw_only=True)
class World:
    """The ranks of a run, seen from one of them.

    Attributes:
        rank, size: this process, of so many.
        device: what it computes on.
        sizes: ranks along each dimension of the mesh.
        mesh: the ranks by their place, dimensions "replicate", "shard", "expert", "tensor"; None for one process.
    """

    rank: int
    size: int
    device: torch.device
    sizes: Sizes
    mesh: "DeviceMesh | None" = None
    store: Store | None = None
    data_group: dist.ProcessGroup | None = None  # ranks with this one's place in "tensor"; they read different rows
    n_votes: int = 0

    @classmethod
    def alone(cls, device: torch.device) -> Self:
        """Returns the world of a single process."""
        return cls(rank=0, size=1, device=device, sizes=Sizes())

    @property
    def is_main(self) -> bool:
        """Whether this is the rank that writes and speaks."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """How many ranks read different rows: all but those along "tensor"."""
        return self.size // self.sizes.tensor

    @property
    def data_rank(self) -> int:
        """This rank's place among them; "tensor" is the mesh's last dimension."""
        return self.rank // self.sizes.tensor

    def place(self) -> dict[str, int]:
        """Returns where this rank stands along each dimension of the mesh."""
        if self.mesh is None:
            return dict.fromkeys(NAMES, 0)
        return dict(zip(NAMES, self.mesh.get_coordinate() or (), strict=True))

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum of a small tensor over the data ranks, the same bits on each."""
        if self.data_size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total, group=self.data_group)
        return total

    def sum_of_all(self, tensor: Tensor) -> Tensor:
        """Returns the sum over all ranks, those of "tensor" too."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total)
        return total

    def agreed(self, elapsed_s: float, number: int) -> tuple[float, int]:
        """Returns rank 0's time and the signal that asked any rank to stop: the loop's decisions are one everywhere.

        The figures meet on the CPU, so that no rank waits for its GPU.
        """
        if self.size == 1:
            return elapsed_s, number
        both = torch.tensor([elapsed_s if self.is_main else 0.0, number], dtype=torch.float64)
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        return float(both[0]), int(both[1])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends the block on all ranks or on none: an error of one becomes an error of all.

        Raises: what the block raised, on its rank; elsewhere ValueError with that text, from the lowest such rank.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        self._vote(error)

    def _vote(self, error: Exception | None) -> None:
        if self.size == 1 or self.store is None:
            if error is not None:
                raise error
            return
        self.n_votes += 1
        if error is not None:
            self.store.set(f"vote/{self.n_votes}/{self.rank}", _text(error))
        first = torch.tensor(self.size if error is None else self.rank)
        dist.all_reduce(first, op=dist.ReduceOp.MIN)
        if (rank := int(first)) == self.size:
            return
        text = self.store.get(f"vote/{self.n_votes}/{rank}").decode()
        dist.all_reduce(first)  # nobody leaves, and takes the store away, before all have read; a barrier asks the GPUs
        raise error or ValueError(text if rank == 0 else f"rank {rank}: {text}")

    def main_first(self, work: Callable[[], T]) -> T:
        """Returns what `work` returns, which rank 0 does before the others begin, however long that takes.

        Raises: as `together`; when rank 0 fails, the others do not begin.
        """
        if self.store is None:
            return work()
        key = f"first/{self.n_votes}"
        if self.is_main:
            with self.together():
                try:
                    result = work()
                except Exception as error:
                    self.store.set(key, _text(error))
                    raise
                self.store.set(key, "")
            return result
        while not self.store.check([key]):  # a wait inside of torch would hear no signal
            time.sleep(_POLL_S)
        has_failed = bool(self.store.get(key))
        with self.together():
            if not has_failed:
                result = work()
        return result


@contextmanager
def join(settings: ParallelSettings, device: torch.device, env: Env = os.environ) -> Iterator[World]:
    """Enters the world that torchrun started this process in, or that of one process, and leaves it at the end.

    Raises: ValueError when its size does not fit the settings, or torchrun's variables are half set; OSError when a
        rank does not come, naming it, or the port is taken.
    """
    size, rank = _place(env)
    sizes = settings.sizes(size, per_machine=_number(env, "LOCAL_WORLD_SIZE", size, least=1))
    if size == 1:
        yield World.alone(device)
        return
    if device.type == "cuda":
        device = _own_gpu(_number(env, "LOCAL_RANK", 0))
    store = _meet(rank, size, settings.timeout_s, env)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=PrefixStore("group", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=settings.timeout_s),
    )
    try:
        world = World(rank=rank, size=size, device=device, sizes=sizes, store=store)
        world.mesh, world.data_group = arrange(sizes, device)
        yield world
    finally:
        dist.destroy_process_group()


def _place(env: Env) -> tuple[int, int]:
    """How many ranks there are, and which one this is."""
    size = _number(env, "WORLD_SIZE", 1, least=1)
    if size > 1 and "RANK" not in env:  # each would be the first, and wait for the others
        raise PlaceError(f"expected RANK beside WORLD_SIZE={size}, got none; hint: torchrun sets both, or unset both")
    rank = _number(env, "RANK", 0)
    if size > 1 and rank >= size:
        raise PlaceError(f"expected RANK below WORLD_SIZE={size}, got {rank}; hint: torchrun sets both, or unset both")
    return size, rank


def _number(env: Env, name: str, default: int, *, least: int = 0) -> int:
    text = env.get(name, str(default))
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        got = f"got {text!r}; hint: torchrun sets it, or unset it"
        raise PlaceError(f"expected a number of at least {least} in {name}, {got}")
    return int(text)


def _own_gpu(local_rank: int) -> torch.device:
    n = torch.cuda.device_count()
    if local_rank >= n:
        got = f"got {n} of them; hint: torchrun --nproc-per-node {n}"
        raise ValueError(f"expected a CUDA device for each process of this machine, {local_rank + 1} or more, {got}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def arrange(sizes: Sizes, device: torch.device) -> "tuple[DeviceMesh, dist.ProcessGroup]":
    """Returns the mesh, and the group of data ranks that this one belongs to."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(device.type, tuple(getattr(sizes, name) for name in NAMES), mesh_dim_names=NAMES)
    return mesh, mesh["replicate", "shard", "expert"]._flatten("data").get_group()


def _meet(rank: int, size: int, timeout_s: float, env: Env) -> Store:
    """Returns the key-value store of all ranks once every one of them has come to it."""
    host, port = env.get("MASTER_ADDR", "127.0.0.1"), _number(env, "MASTER_PORT", 29500)
    is_agents = env.get("TORCHELASTIC_USE_AGENT_STORE", "False") == "True"  # then torchrun itself keeps the store
    options: dict[str, Any] = {"timeout": timedelta(seconds=timeout_s), "wait_for_workers": False, "multi_tenant": True}
    try:
        found = _within(timeout_s + 1, lambda: TCPStore(host, port, None, rank == 0 and not is_agents, **options))
    except (dist.DistNetworkError, TimeoutError) as error:
        if rank == 0 and not is_agents:
            hint = "hint: another MASTER_PORT, or torchrun --master-port"
            text = f"cannot listen on port {port} of {host} for the other ranks: {_first_line(error)}; {hint}"
            raise OSError(text) from error
        raise MainMissingError(
            f"rank {rank}: rank 0 did not answer on port {port} of {host} within {timeout_s:g} s"
        ) from error
    end = time.monotonic() + timeout_s
    if rank == 0:
        return _gathered(found, size, end, timeout_s)
    try:
        return _joined(found, rank, size, end, timeout_s)
    except dist.DistNetworkError as error:  # the store went with it
        raise MainMissingError(f"rank {rank}: rank 0 left before all {size} ranks had come") from error


def _within(seconds: float, make: Callable[[], T]) -> T:
    """Returns what `make` does. Another program on the port may take a connection and never answer: for that torch
    waits without an end, so it does in a thread, beside which signals are heard.

    Raises: TimeoutError; what `make` raises.
    """
    made: Future[T] = Future()

    def work() -> None:
        try:
            made.set_result(make())
        except Exception as error:
            made.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return made.result(seconds)


def _gathered(found: Store, size: int, end: float, timeout_s: float) -> Store:
    """Returns a store of this start of the ranks alone: rank 0 names it, and tells each rank by its own word.

    torchrun's agents keep one store for all starts, and each counts restarts for itself, so a number that tells the
    starts apart is nowhere. A rank believes who has its word, since no rank 0 from before can.
    """
    name = uuid.uuid4().hex
    store = PrefixStore(f"gptrs/{name}", found)
    store.set(_here(0), "")
    while missing := [rank for rank in range(1, size) if not store.check([_here(rank)])]:
        if time.monotonic() > end:
            error = _absent(missing, size, timeout_s)
            _let_go(store, sorted({*range(1, size)} - {*missing}), str(error))
            raise error
        words = {rank: found.get(_word(rank)).decode() for rank in range(1, size) if found.check([_word(rank)])}
        found.set(_START, json.dumps({"name": name, "words": words}))
        time.sleep(0.01)
    store.set(_ALL, "")
    return store


def _let_go(store: Store, ranks: list[int], text: str) -> None:
    """Tells those that came why they leave, and waits a moment until they have read it: the store goes with rank 0."""
    store.set(_ALL, text)
    end = time.monotonic() + _FAREWELL_S
    while ranks and time.monotonic() < end and not store.check([_left(rank) for rank in ranks]):
        time.sleep(0.01)


def _joined(found: Store, rank: int, size: int, end: float, timeout_s: float) -> Store:
    """Returns the store that rank 0 has named, once all ranks are there."""
    word, name = uuid.uuid4().hex, None
    found.set(_word(rank), word)
    while name is None:
        if time.monotonic() > end:
            raise MainMissingError(f"rank {rank}: {_absent([0], size, timeout_s)}")
        start = json.loads(found.get(_START)) if found.check([_START]) else {"words": {}}
        if start["words"].get(str(rank)) == word:
            name = start["name"]
        else:
            time.sleep(0.01)
    store = PrefixStore(f"gptrs/{name}", found)
    store.set(_here(rank), "")
    while not store.check([_ALL]):
        if time.monotonic() > end:
            store.set(_left(rank), "")
            raise _absent([other for other in range(size) if not store.check([_here(other)])], size, timeout_s)
        time.sleep(0.01)
    if text := store.get(_ALL).decode():
        store.set(_left(rank), "")
        raise OSError(text)
    return store


_START = "gptrs/start"
_ALL = "all"  # is there once all ranks are, or with the text of why they never will be
_FAREWELL_S = 1.0


def _word(rank: int) -> str:
    return f"gptrs/word/{rank}"


def _here(rank: int) -> str:
    return f"here/{rank}"


def _left(rank: int) -> str:
    return f"left/{rank}"


def _absent(missing: list[int], size: int, timeout_s: float) -> OSError:
    names = f"rank{'s' * (len(missing) > 1)} {', '.join(map(str, missing))}"
    hint = "hint: see what ended it there; parallel.timeout_s waits longer"
    return OSError(f"expected {size} ranks within {timeout_s:g} s, got none of {names}; {hint}")


def _text(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
