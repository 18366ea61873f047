"""Shards to batches in an order that only the seed decides.

    Dataset ──▶ Loader ──▶ Batch (tokens, targets)

The order is a pure function of (seed, epoch, index): the loader's whole state is one integer, the next sample. It is
the same on every rank, and after a stop any number of ranks and any microbatch continue exactly where it stood. A Rust
thread fills fresh buffers ahead of the consumer, so a batch that is kept is never overwritten.
"""

import math
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from gptrs import _core
from gptrs.dataset import Dataset, require

_STATE_VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One rank's microbatch: B rows of T tokens, and for each the token that follows."""

    tokens: Any  # (B, T) int64, torch.Tensor or with device="numpy" an array
    targets: Any  # (B, T) int64: targets[b, t] follows tokens[b, t]
    loader: "Loader"  # what made it, and where its shards are
    sample: int  # the loader's next_sample before it

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """(B,) where each row begins in the dataset."""
        return self.loader.core.row_starts(self.sample)

    @property
    def doc_ids(self) -> Any:
        """(B, T) int32: the number of each token's document, counted from 0 over the dataset."""
        return self._like_tokens(self._doc_ids())

    @property
    def positions(self) -> Any:
        """(B, T) int64: each token's distance from the start of its document, or of the row where that is later."""
        doc_ids = self._doc_ids()  # (B, T)
        at = np.arange(doc_ids.shape[1])  # (T,)
        is_first = np.diff(doc_ids, axis=1, prepend=doc_ids[:, :1]) != 0  # (B, T)
        return self._like_tokens(at - np.maximum.accumulate(np.where(is_first, at, 0), axis=1))

    def _doc_ids(self) -> npt.NDArray[np.int32]:
        T = self.tokens.shape[1]
        return np.stack([self.loader.dataset.doc_ids(int(start), T) for start in self.starts])  # (B, T)

    def _like_tokens(self, array: npt.NDArray[Any]) -> Any:
        if isinstance(self.tokens, np.ndarray):
            return array
        import torch

        return torch.from_numpy(array).to(self.tokens.device)


class Loader:
    """An endless iterator of microbatches; rows are shuffled anew in every epoch by (seed, epoch).

    Microbatch `k` of `rank` holds the samples `(k * world_size + rank) * micro_batch` and on: the samples of one step
    are the same for any number of ranks and any microbatch.

    A Rust thread starts at the first `next()` and keeps `prefetch` buffers full; `close()` (or leaving a `with` block)
    ends it. In a forked child, or unpickled in another process, the loader continues by itself with a thread of its
    own. Workers of a torch DataLoader are not needed; several of them would each deliver every batch.

    Example:
        >>> import gptrs, pathlib, tempfile
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "text.txt").write_text("to be or not to be " * 40)
        >>> tok = gptrs.Tokenizer.train(folder, 260)
        >>> dataset = gptrs.prepare(folder, tok, folder / "tokens")
        >>> with Loader(dataset, seq_len=8, global_batch=4, seed=1, device="numpy") as loader:
        ...     batch = next(loader)
        ...     batch.tokens.shape, bool((batch.tokens[:, 1:] == batch.targets[:, :-1]).all()), loader.next_sample
        ((4, 8), True, 4)
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        seq_len: int,
        global_batch: int,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batch: int | None = None,
        pack: str = "stream",
        shuffle: bool = True,
        device: str = "cpu",
        prefetch: int = 4,
    ) -> None:
        """Args:
            dataset: The tokens.
            seq_len: T, tokens in a row.
            global_batch: Rows of one optimizer step over all ranks.
            seed: Decides the order, with the dataset and `seq_len` alone.
            rank: This process, of `world_size`.
            world_size: Processes in all.
            micro_batch: Rows of one item; by default global_batch / world_size.
            pack: How rows are cut from documents: "stream" (one after the other, nothing lost).
            shuffle: False gives the rows in the dataset's order.
            device: "cpu" or "cuda…" for torch tensors there, "numpy" for arrays without torch.
            prefetch: Buffers that are filled ahead.

        Raises:
            ValueError: An argument is out of range, or the batch sizes do not divide; names the nearest that do.
        """
        if pack != "stream":
            raise ValueError(f'pack must be "stream", got {pack!r}; hint: "stream" cuts rows without loss')
        if micro_batch is None:
            micro_batch = _split(global_batch, world_size)
        sizes = {"seq_len": seq_len, "global_batch": global_batch, "micro_batch": micro_batch, "world_size": world_size}
        for name, value in {**sizes, "prefetch": prefetch}.items():
            require(name, value, 1, (1 << 31) - 1)
        require("seed", seed, 0, (1 << 64) - 1)
        require("rank", rank, 0, world_size - 1)
        self.dataset = dataset
        self.seq_len = seq_len
        self.global_batch = global_batch
        self.micro_batch = micro_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shuffle = shuffle
        self.device = device
        self.prefetch = prefetch
        self.core = _core.Loader(dataset.core, seq_len, global_batch, micro_batch, rank, world_size, seed, shuffle)
        self._memory = _ring(device, micro_batch, seq_len, dataset.dtype, 2 * prefetch)
        self._next_sample = 0
        self._ring: _core.Ring | None = None
        self._in_flight: deque[_Slot] = deque()
        self._pid = os.getpid()
        self._is_closed = False

    @property
    def n_rows(self) -> int:
        """Rows in one epoch."""
        return self.core.n_rows

    @property
    def next_sample(self) -> int:
        """Samples handed out on all ranks: the whole state."""
        return self._next_sample

    @property
    def epoch(self) -> int:
        """The epoch of the next sample, counted from 0."""
        return self._next_sample // self.n_rows

    @property
    def micro_batches_per_step(self) -> int:
        """Items of this rank in one optimizer step."""
        return self.global_batch // (self.micro_batch * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next microbatch; waits only when the thread has fallen behind.

        Raises:
            ValueError: A shard is damaged.
            OSError: A shard cannot be read.
        """
        ring = self._running()
        while len(self._in_flight) < self.prefetch:
            self._submit(ring)
        try:
            ring.next()
        except Exception:
            self._stop()  # the next call begins again at the same sample
            raise
        batch = self._batch(self._next_sample, self._in_flight.popleft())
        self._submit(ring)
        self._next_sample += self.micro_batch * self.world_size
        return batch

    def batch_at(self, index: int) -> Batch:
        """Microbatch `index` of this rank, counted from the beginning; leaves the loader where it is."""
        require("index", index, 0, (1 << 63) // (self.micro_batch * self.world_size) - 1)
        sample = index * self.micro_batch * self.world_size
        slot = self._memory.take()
        self.core.fill(sample, slot.array)
        return self._batch(sample, slot)

    def state_dict(self) -> dict[str, Any]:
        """What continues this loader exactly: JSON of less than 1 KB, the same on every rank."""
        return {
            "version": _STATE_VERSION,
            "order": self.core.order,
            "seed": self.seed,
            "next_sample": self._next_sample,
            "fingerprint": self.dataset.fingerprint,
            "seq_len": self.seq_len,
            "global_batch": self.global_batch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues at the state of another loader, whatever its rank, world size and microbatch were.

        Raises:
            ValueError: A field is missing or differs (named with both values), or the state does not stand at the
                border of a microbatch of this loader.
        """
        here = self.state_dict()
        for name in here | state:
            if name not in state or name not in here:
                where = "missing from" if name not in state else "unknown in"
                raise ValueError(f"field {name!r} is {where} the loader state; hint: pass what state_dict() returned")
            if name != "next_sample" and state[name] != here[name]:
                raise ValueError(
                    f"the loader state has {name} {state[name]!r}, this loader {here[name]!r}; hint: make the loader "
                    f"with the same {name}"
                )
        stride = self.micro_batch * self.world_size
        next_sample = state["next_sample"]
        if type(next_sample) is not int or next_sample < 0 or next_sample % stride:
            raise ValueError(
                f"next_sample must be a multiple of micro_batch * world_size ({stride}), got {next_sample!r}; hint: "
                "choose a micro_batch that divides it"
            )
        self._stop()
        self._next_sample = next_sample

    def close(self) -> None:
        """Ends the thread; the loader cannot be used after that."""
        self._stop()
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return (
            f"Loader({self.dataset!r}, seq_len={self.seq_len}, global_batch={self.global_batch}, seed={self.seed}, "
            f"next_sample={self._next_sample})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = {
            "seq_len": self.seq_len,
            "global_batch": self.global_batch,
            "seed": self.seed,
            "rank": self.rank,
            "world_size": self.world_size,
            "micro_batch": self.micro_batch,
            "shuffle": self.shuffle,
            "device": self.device,
            "prefetch": self.prefetch,
        }
        return _restore, (self.dataset, arguments, self._next_sample)

    def _running(self) -> _core.Ring:
        """The ring of this process; one that a fork left behind has no thread and is dropped."""
        if self._is_closed:
            raise ValueError("the loader is closed; hint: make a new one and load the state of this one")
        if self._pid != os.getpid():
            self._stop()
            self._pid = os.getpid()
        if self._ring is None:
            self._ring = self.core.ring(self._next_sample)
        return self._ring

    def _submit(self, ring: _core.Ring) -> None:
        slot = self._memory.take()
        ring.submit(slot.array)
        self._in_flight.append(slot)

    def _stop(self) -> None:
        self._ring = None  # joins the thread
        self._in_flight.clear()

    def _batch(self, sample: int, slot: "_Slot") -> Batch:
        tokens, targets = self._memory.deliver(slot)
        return Batch(tokens, targets, self, sample)


def _restore(dataset: Dataset, arguments: dict[str, Any], next_sample: int) -> Loader:
    loader = Loader(dataset, **arguments)
    loader._next_sample = next_sample
    return loader


def _split(global_batch: int, world_size: int) -> int:
    """The default microbatch: an equal share of the step for each rank."""
    if world_size < 1 or global_batch < 1 or global_batch % world_size:
        below = max(global_batch // max(world_size, 1), 1) * world_size
        raise ValueError(
            f"global_batch ({global_batch}) must be a positive multiple of world_size ({world_size}); hint: use "
            f"global_batch={below} or global_batch={below + world_size}"
        )
    return global_batch // world_size


class _Slot(NamedTuple):
    """Memory for one microbatch."""

    array: npt.NDArray[Any]  # what Rust fills
    tensor: Any = None  # the same memory as a pinned tensor, where it is


class _HostRing:
    """Memory of batches on the CPU, used again once nobody holds anything that was made from it.

    Fresh memory costs more than filling it: the system maps and clears each page at the first touch.
    """

    def __init__(self, shape: tuple[int, ...], size: int, from_numpy: Callable[..., Any] | None) -> None:
        self._shape = shape
        self._n_bytes = 8 * math.prod(shape)
        self._from_numpy = from_numpy  # torch's, for tensors
        self._free: deque[bytearray] = deque(maxlen=size)
        self._lent: dict[weakref.ref[npt.NDArray[Any]], bytearray] = {}

    def take(self) -> _Slot:
        """Memory of (2, B, T) to fill."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = bytearray(self._n_bytes)
        flat = np.frombuffer(memory, np.int64)
        # numpy gives every view of it this base, and a tensor keeps its array: when `flat` dies nothing is left.
        self._lent[weakref.ref(flat, self._give_back)] = memory
        return _Slot(flat.reshape(self._shape))

    def _give_back(self, lent: "weakref.ref[npt.NDArray[Any]]") -> None:
        self._free.append(self._lent.pop(lent))

    def deliver(self, slot: _Slot) -> tuple[Any, Any]:
        """Tokens and targets, (B, T) int64, in the memory of `slot`."""
        if self._from_numpy is None:
            return slot.array[0], slot.array[1]
        tokens, targets = self._from_numpy(slot.array).unbind()
        return tokens, targets


class _PinnedRing:
    """Pinned memory of rows on their way to a CUDA device, used again once their copy has ended there."""

    def __init__(self, device: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        import torch

        self._torch, self._device, self._shape, self._dtype = torch, device, shape, dtype
        # torch has few operations on unsigned types: the same bits as signed ones, masked after widening.
        self._signed = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        self._mask = (1 << 8 * dtype.itemsize) - 1
        self._copying: deque[tuple[_Slot, Any]] = deque()  # and the event behind the copy, oldest first

    def take(self) -> _Slot:
        """Memory of (B, T + 1) to fill with rows as in the shards."""
        if self._copying and self._copying[0][1].query():
            return self._copying.popleft()[0]
        rows = self._torch.empty(self._shape, dtype=self._signed, pin_memory=True)
        return _Slot(rows.numpy().view(self._dtype), rows)

    def deliver(self, slot: _Slot) -> tuple[Any, Any]:
        """Tokens and targets, (B, T) int64 on the device: two bytes a token cross the bus and are widened there."""
        torch = self._torch
        with torch.cuda.device(self._device):
            rows = slot.tensor.to(self._device, non_blocking=True)  # (B, T+1)
            copied = torch.cuda.Event()
            copied.record()
        self._copying.append((slot, copied))
        rows = rows.to(torch.int64) & self._mask  # (B, T+1)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()  # (B, T)


def _ring(device: str, B: int, T: int, dtype: np.dtype[Any], size: int) -> _HostRing | _PinnedRing:
    """The memory of batches for `device`; wrong devices and missing packages show here, before the first batch."""
    if device == "numpy":
        return _HostRing((2, B, T), size, None)
    try:
        import torch
    except ModuleNotFoundError as error:
        hint = "hint: pip install 'gptrs[train]', or use device=\"numpy\""
        raise ModuleNotFoundError(f"device={device!r} needs PyTorch, which is not installed; {hint}") from error
    if device == "cpu":
        return _HostRing((2, B, T), size, torch.from_numpy)
    if device.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise ValueError(f'device must be "cpu", "numpy" or a CUDA device that is there, got {device!r}')
    return _PinnedRing(device, (B, T + 1), dtype)
