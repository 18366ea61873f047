"""What a checkpoint holds of a run, by name, and a copy of it that training cannot change any more.

    model ────▶ NAME       ┐
    optimizer ▶ NAME/KEY   ├─ copy ─▶ memory of the CPU, kept from save to save ─▶ a thread writes it
    others ───▶ KIND:NAME  ┘

The copy is all that training waits for. On CUDA not even the host waits: the copy has a stream of its own, behind which
the stream of the training queues.
"""

import math
import weakref
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gptrs.train.optim import HasState

OPTIMIZER_KEY = "/"  # between a parameter's name and the name of its state; parameter names have dots only
ALIGNMENT = 64  # bytes, of a cache line


Tensors = dict[str, dict[str, Tensor]]  # kind, which names a file, then name


def tensors_of(
    model: nn.Module, optimizer: HasState | None, others: Mapping[str, Mapping[str, Tensor]] | None = None
) -> Tensors:
    """Returns the live tensors of a run by kind and name; a shared tensor stands under its first name.

    Args:
        optimizer: None for a model that comes from elsewhere.
        others: more tensors by kind and parameter's name, like averaged weights.
    """
    found = {"model": model_tensors(model), "optimizer": _optimizer_tensors(model, optimizer)}
    for kind, tensors in (others or {}).items():
        assert kind.isalpha() and kind not in found, kind
        found[kind] = named(kind, tensors)
    return found


def parameter_of(name: str) -> str:
    """Returns the parameter that a tensor of a checkpoint belongs to."""
    return name.partition(":")[2] or name.partition(OPTIMIZER_KEY)[0]


def named(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns other tensors under the names that they have in a checkpoint."""
    return {f"{kind}:{name}": tensor.detach() for name, tensor in tensors.items()}


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Returns parameters and persistent buffers by name; a tensor under two names stands under its first."""
    names = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return {name: tensor for name, tensor in model.state_dict().items() if name in names}


def _optimizer_tensors(model: nn.Module, optimizer: HasState | None) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for name, parameter in () if optimizer is None else model.named_parameters():
        assert optimizer is not None
        for key, value in optimizer.state.get(parameter, {}).items():
            assert isinstance(value, Tensor), (name, key, type(value))
            found[f"{name}{OPTIMIZER_KEY}{key}"] = value.detach()
    return found


class Snapshot:
    """Memory for one copy of a run's tensors; the next copy goes into the same place."""

    def __init__(self) -> None:
        self._layout: list[tuple[str, torch.dtype, torch.Size]] = []
        self._copies: Tensors = {}
        self._stream: torch.cuda.Stream | None = None
        self._copied: torch.cuda.Event | None = None
        self._unpin: Callable[[], object] = lambda: None

    def take(self, tensors: Tensors) -> Tensors:
        """Copies tensors and returns the copies; whoever reads them calls `wait` first.

        The copies of the call before are overwritten.
        """
        pairs = [(name, tensor) for of_kind in tensors.values() for name, tensor in of_kind.items()]
        layout = [(name, tensor.dtype, tensor.shape) for name, tensor in pairs]
        device = next((tensor.device for _, tensor in pairs if tensor.is_cuda), None)
        if layout != self._layout:
            self._allocate(tensors, device)
            self._layout = layout
        if device is None:
            self._copy(tensors)
        else:
            self._copy_beside(tensors, device)
        return self._copies

    def wait(self) -> None:
        """Waits until the copies are whole."""
        if self._copied is not None:
            self._copied.synchronize()

    def _copy(self, tensors: Tensors) -> None:
        for kind, of_kind in tensors.items():
            for name, tensor in of_kind.items():
                self._copies[kind][name].copy_(tensor, non_blocking=True)

    def _copy_beside(self, tensors: Tensors, device: torch.device) -> None:
        current = torch.cuda.current_stream(device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self._copy(tensors)
            self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._copied.record()
        current.wait_stream(self._stream)  # the next update must not overtake the copy

    def _allocate(self, tensors: Tensors, device: torch.device | None) -> None:
        self._unpin()
        self._copies = {}  # gives the memory of before back first
        sizes = [t.numel() * t.itemsize for of_kind in tensors.values() for t in of_kind.values()]
        room = torch.empty(sum(_padded(size) for size in sizes), dtype=torch.uint8)
        if device is not None:
            self._unpin = weakref.finalize(self, _unpin, _pin(room))
        start = 0
        for kind, of_kind in tensors.items():
            self._copies[kind] = {}
            for name, tensor in of_kind.items():
                size = tensor.numel() * tensor.itemsize
                self._copies[kind][name] = room[start : start + size].view(tensor.dtype).view(tensor.shape)
                start += _padded(size)


def _padded(size: int) -> int:
    return ALIGNMENT * math.ceil(size / ALIGNMENT)


def _pin(room: Tensor) -> int:
    """Makes memory a place for copies that nobody waits for; torch's own comes in powers of two, up to twice of it."""
    code = int(torch.cuda.cudart().cudaHostRegister(room.data_ptr(), room.numel(), 1))  # type: ignore[no-untyped-call]
    if code != 0:
        size = f"{room.numel():,} bytes of CPU memory for checkpoints"
        raise RuntimeError(f"cannot pin {size}: CUDA error {code}; hint: train.checkpoint_async=false")
    return room.data_ptr()


def _unpin(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]
