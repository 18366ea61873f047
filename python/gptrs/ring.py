"""The memory of batches: filled by a Rust thread, used again when nobody needs what it held."""

import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt


class Slot(NamedTuple):
    """Memory for one microbatch: what Rust fills."""

    array: npt.NDArray[Any]  # (2, B, T) tokens and targets, or (B, T+1) rows as in the shards
    positions: npt.NDArray[np.int32] | None = None  # (B, T)
    cu_seqlens: npt.NDArray[np.int32] | None = None  # (B·n + 1,), n documents a row at most
    tensors: tuple[Any, ...] = ()  # the same memory as pinned tensors, where it is


class Delivered(NamedTuple):
    """What the user gets of a slot: arrays, or tensors on the loader's device."""

    tokens: Any  # (B, T) int64
    targets: Any  # (B, T) int64
    positions: Any = None  # (B, T) int32
    cu_seqlens: Any = None  # (B·n + 1,) int32


class HostRing:
    """Memory on the CPU, used again once nobody holds anything that was made from it.

    Fresh memory costs more than filling it: the system maps and clears each page at the first touch.
    """

    def __init__(self, B: int, T: int, n_marks: int, size: int, from_numpy: Callable[..., Any] | None) -> None:
        self._shape = (2, B, T)
        self._n_marks = n_marks  # elements of cu_seqlens, 0 for neither it nor positions
        self._n_bytes = 8 * 2 * B * T + (4 * (B * T + n_marks) if n_marks else 0)
        self._from_numpy = from_numpy  # torch's, for tensors
        self._free: deque[bytearray] = deque(maxlen=size)
        self._lent: dict[int, tuple[weakref.ref[npt.NDArray[Any]], bytearray]] = {}  # by the reference's id

    def take(self) -> Slot:
        """Memory to fill."""
        try:
            memory = self._free.pop()
        except IndexError:
            memory = bytearray(self._n_bytes)
        flat = np.frombuffer(memory, np.int64, self._n_bytes // 8) if not self._n_marks else np.frombuffer(memory, "u1")
        # numpy gives every view of it this base, and a tensor keeps its array: when `flat` dies nothing is left.
        lease = weakref.ref(flat, self._give_back)
        self._lent[id(lease)] = (lease, memory)
        if not self._n_marks:
            return Slot(flat.reshape(self._shape))
        n = math.prod(self._shape)
        marks = flat[8 * n :].view(np.int32)
        positions = marks[: n // 2].reshape(self._shape[1:])
        return Slot(flat[: 8 * n].view(np.int64).reshape(self._shape), positions, marks[n // 2 :])

    def _give_back(self, lease: "weakref.ref[npt.NDArray[Any]]") -> None:
        self._free.append(self._lent.pop(id(lease))[1])

    def deliver(self, slot: Slot) -> Delivered:
        """The arrays or tensors in the memory of `slot`."""
        if self._from_numpy is None:
            return Delivered(slot.array[0], slot.array[1], slot.positions, slot.cu_seqlens)
        tokens, targets = self._from_numpy(slot.array).unbind()
        if slot.positions is None:
            return Delivered(tokens, targets)
        return Delivered(tokens, targets, self._from_numpy(slot.positions), self._from_numpy(slot.cu_seqlens))


class PinnedRing:
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

    def take(self) -> Slot:
        """Memory to fill."""
        if self._copying and self._copying[0][1].query():
            return self._copying.popleft()[0]
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
            return Delivered(rows[0], rows[1], *marks)
        rows &= self._mask  # (B, T+1)
        return Delivered(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), *marks)


def ring(
    device: str, B: int, T: int, *, dtype: np.dtype[Any], n_marks: int, has_own_targets: bool, size: int
) -> HostRing | PinnedRing:
    """The memory of batches for `device`; wrong devices and missing packages show here, before the first batch.

    Raises:
        ValueError: There is no such device.
        ModuleNotFoundError: It needs PyTorch.
    """
    if device == "numpy":
        return HostRing(B, T, n_marks, size, None)
    try:
        import torch
    except ModuleNotFoundError as error:
        hint = "hint: pip install 'gptrs[train]', or use device=\"numpy\""
        raise ModuleNotFoundError(f"device={device!r} needs PyTorch, which is not installed; {hint}") from error
    if device == "cpu":
        return HostRing(B, T, n_marks, size, torch.from_numpy)
    if device.split(":")[0] != "cuda" or not torch.cuda.is_available():
        raise ValueError(f'device must be "cpu", "numpy" or a CUDA device that is there, got {device!r}')
    return PinnedRing(B, T, n_marks, device, dtype, has_own_targets)
