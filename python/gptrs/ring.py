"""The memory of batches: filled ahead by a Rust thread, used again when nobody needs what it held."""

from collections import deque
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gptrs import _core

Delivered = tuple[Any, ...]  # tokens and targets (B, T) int64; where asked for, positions and cu_seqlens, int32


class Slot(NamedTuple):
    """Pinned memory for one microbatch: what Rust fills, and the same memory as tensors."""

    array: npt.NDArray[Any]  # (2, B, T) tokens and targets, or (B, T+1) rows as in the shards
    positions: npt.NDArray[np.int32] | None  # (B, T)
    cu_seqlens: npt.NDArray[np.int32] | None  # (B·n + 1,), n documents a row at most
    tensors: tuple[Any, ...]


class PinnedMemory:
    """Pinned memory of rows on their way to a CUDA device, used again once their copy has ended there.

    Rows of the stream cross the bus as in the shards, two bytes a token for most vocabularies, and are widened there;
    packed rows and those of a dataset with loss bits have targets of their own and cross as int32.
    """

    def __init__(self, B: int, T: int, n_marks: int, device: str, dtype: np.dtype[Any], has_own_targets: bool) -> None:
        import torch

        self._torch, self._device, self._has_own_targets = torch, device, has_own_targets
        self._shape = (2, B, T) if has_own_targets else (B, T + 1)
        self._marks = ((B, T), (n_marks,)) if n_marks else ()
        # torch has few operations on unsigned types: the same bits as signed ones, masked after widening.
        self._dtype = np.dtype(np.int32) if has_own_targets else dtype
        self._signed = {2: torch.int16, 4: torch.int32}[self._dtype.itemsize]
        self._mask = (1 << 8 * dtype.itemsize) - 1
        self._copying: deque[tuple[Slot, Any]] = deque()  # and the event behind the copy, oldest first

    def start(self, loader: _core.Loader, next_sample: int, prefetch: int) -> "PinnedRing":
        """The microbatches from `next_sample` on, up to `prefetch` of them filled ahead."""
        return PinnedRing(self, loader.ring(next_sample), prefetch)

    def read(self, loader: _core.Loader, next_sample: int) -> Delivered:
        """The microbatch at `next_sample`, read now."""
        slot = self.take()
        loader.fill(next_sample, slot.array, slot.positions, slot.cu_seqlens)
        return self.deliver(slot)

    def take(self) -> Slot:
        """Memory to fill."""
        with suppress(IndexError):  # none is being copied; taken out before it is looked at, it is this thread's alone
            slot, copied = self._copying.popleft()
            if copied.query():
                return slot
            self._copying.appendleft((slot, copied))
        torch = self._torch
        rows = torch.empty(self._shape, dtype=self._signed, pin_memory=True)
        marks = [torch.empty(shape, dtype=torch.int32, pin_memory=True) for shape in self._marks]
        positions, cu_seqlens = [mark.numpy() for mark in marks] or (None, None)
        return Slot(rows.numpy().view(self._dtype), positions, cu_seqlens, (rows, *marks))

    def deliver(self, slot: Slot) -> Delivered:
        """The tensors on the device, copied from `slot`."""
        torch = self._torch
        with torch.cuda.device(self._device):
            rows, *marks = (tensor.to(self._device, non_blocking=True) for tensor in slot.tensors)
            copied = torch.cuda.Event()
            copied.record()
        self._copying.append((slot, copied))
        rows = rows.to(torch.int64)
        if self._has_own_targets:
            return rows[0], rows[1], *marks
        rows &= self._mask  # (B, T+1)
        return rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), *marks


class PinnedRing:
    """Microbatches in order, filled ahead by a thread."""

    def __init__(self, memory: PinnedMemory, ring: _core.Ring, prefetch: int) -> None:
        self._memory, self._ring, self._n_wanted = memory, ring, prefetch + 1
        self._lent: deque[Slot] = deque()

    def next(self) -> Delivered:
        """Waits for the next microbatch. After any exception, Ctrl-C too, it may be out of step: drop it."""
        while len(self._lent) < self._n_wanted:
            slot = self._memory.take()
            self._ring.submit(slot.array, slot.positions, slot.cu_seqlens)
            self._lent.append(slot)
        self._ring.next()
        return self._memory.deliver(self._lent.popleft())


Memory = _core.HostMemory | PinnedMemory
Ring = _core.HostRing | PinnedRing


def memory(
    device: str, B: int, T: int, *, dtype: np.dtype[Any], n_marks: int, has_own_targets: bool, n_kept: int
) -> Memory:
    """The memory of batches for `device`; wrong devices and missing packages show here, before the first batch.

    Raises:
        ValueError: There is no such device.
        ModuleNotFoundError: It needs PyTorch.
    """
    if device == "numpy":
        return _core.HostMemory(B, T, n_marks, n_kept)
    try:
        import torch
    except ModuleNotFoundError as error:
        hint = "hint: pip install 'gptrs[train]', or use device=\"numpy\""
        raise ModuleNotFoundError(f"device={device!r} needs PyTorch, which is not installed; {hint}") from error
    if device == "cpu":
        return _core.HostMemory(B, T, n_marks, n_kept, torch.from_numpy)
    if device.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise ValueError(f'device must be "cpu", "numpy" or a CUDA device that is there, got {device!r}')
    return PinnedMemory(B, T, n_marks, device, dtype, has_own_targets)
